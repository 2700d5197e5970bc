"""Publishing on the Hub, against a server that speaks its protocol."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load
from transformers import AutoModel

from tap_hf.backbones.tiny import checkpoint_dir
from tap_hf.hub.publication import client_publication
from tap_hf.hub.push import push
from tests.hub_server import HubServer


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # of peft, about transformers
@pytest.mark.filterwarnings("ignore:Could not find a config file in tiny")
def test_plain_peft_loads_what_was_pushed_bit_equal(hub: HubServer, two_pairs_run: Path) -> None:
    pushed = push(client_publication(two_pairs_run, "clinic", "org/clinic"))
    print(pushed, hub.requests)
    assert len(hub.repos["model org/clinic"].commits) == 2
    backbone = AutoModel.from_pretrained(checkpoint_dir(), dtype=torch.float32)
    model = PeftModel.from_pretrained(backbone, "org/clinic")
    loaded = get_peft_model_state_dict(model)
    saved = load(hub.files("model org/clinic")["adapter_model.safetensors"])
    assert saved.keys() == loaded.keys()
    assert all(torch.equal(saved[name], loaded[name]) for name in saved)
    from tap_hf import TapModel

    m = TapModel.from_pretrained("org/clinic")
    print(m.predict(text="Fracture of lower end of left femur"))
