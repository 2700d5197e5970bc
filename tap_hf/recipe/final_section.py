"""Training after the last round: one option of every method."""

from pydantic import Field

from tap_hf.recipe.section import Section


class FinalSection(Section):
    """Steps of each client on its own data after the last round; each method says what it does with them."""

    steps: int = Field(0, ge=0)
    steps_per_round: int = Field(0, ge=0, description="more of them, for each round that the client took part in")
    choose: bool = Field(
        False,
        description="end, task by task, with the best on validation data of the trained set, the server's, TAP's "
        "teacher and their means",
    )
    learning_rate: float | None = Field(None, gt=0, description="null: that of the last round")
