"""Bytes between a server and its sites, over Flower; nothing of it knows what the bytes mean.

The server's side is `open_server`, a site's is `serve`. Flower runs in processes of its own (SuperLink, SuperNode),
which end with the one that started them. A site runs no code that it receives: it speaks Flower's protocol itself,
where Flower would start the app that the server sends.
"""

from typing import TYPE_CHECKING

from tap_hf.lazy_names import lazy_names

if TYPE_CHECKING:
    from tap_hf.federation.engines.flower.keys import Tls, make_keys
    from tap_hf.federation.engines.flower.project import export_app
    from tap_hf.federation.engines.flower.superlink import open_server
    from tap_hf.federation.engines.flower.supernode import serve
else:
    __getattr__, __dir__, __all__ = lazy_names(__name__)
