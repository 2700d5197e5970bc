"""Why a library could not read something, in one line."""


def reason(error: BaseException) -> str:
    """Return the first line of the innermost cause: `datasets` wraps it in errors that say nothing."""
    while (deeper := error.__cause__ or error.__context__) is not None:
        error = deeper
        if "JSON parse error" in str(error):  # of Arrow; then `datasets` tries pandas, which says less
            break
    text = (str(error).splitlines() or [type(error).__name__])[0]
    return "it has no rows." if "corresponds to no data" in text else text
