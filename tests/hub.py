"""The one server of a test process, which must be there before `huggingface_hub` is imported."""

from tests.hub_server import HubServer

HUB = HubServer().start()
