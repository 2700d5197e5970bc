"""What the Flower app of `tap-hf flower export` names: the server's half in a SuperLink that somebody else runs."""

from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from tap_hf.errors import TapError
from tap_hf.federation.engines.flower.exchange import GridTransport
from tap_hf.federation.parties import serve
from tap_hf.recipe import load_recipe

_LARGEST = 2**30  # bytes of a reply

server = ServerApp()
client = ClientApp()


def _serve(grid: Grid, context: Context) -> None:
    """Do what `tap-hf server` does; a run in the same folder goes on."""
    recipe = load_recipe(Path(str(context.run_config["recipe"])))
    serve(recipe, GridTransport(grid, _LARGEST), Path(str(context.run_config["output-dir"])), resume=True)


def _refuse(message: Message, context: Context) -> Message:
    raise TapError("A site answers in its own process. Start it with `tap-hf site` in place of this SuperNode.")


server.main()(_serve)
client.query("tap_hf")(_refuse)
