"""The Hub: push and pull personalized adapters, predict with them, adopt them for a new client."""

from typing import TYPE_CHECKING

from tap_hf.lazy_names import lazy_names

if TYPE_CHECKING:
    from tap_hf.hub.adoption import adopt
    from tap_hf.hub.cards.history import history_line
    from tap_hf.hub.cards.model_card import client_card, federation_card
    from tap_hf.hub.client_model import load_client_model, load_client_sets, record_of
    from tap_hf.hub.publication import Publication, client_publication, federation_publication
    from tap_hf.hub.published import published_pairs
    from tap_hf.hub.pulling import pull
    from tap_hf.hub.pushing import push
    from tap_hf.hub.redaction import global_tasks, published_name, published_record, withheld_components
else:
    __getattr__, __dir__, __all__ = lazy_names(__name__)
