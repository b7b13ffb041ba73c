"""A response's status and why it is incomplete, in the API's words or a server's own. No I/O."""

RUNNING = ("queued", "in_progress")  # statuses of a response whose work goes on
END_STATUSES = ("completed", "incomplete", "failed", "cancelled")

# What servers say instead (job queues, and the reasons for which other APIs say that they ended).
_STATUSES = {
    word: status
    for status, words in {
        "queued": "queued enqueued in_queue pending created new accepted received submitted "
        "scheduled waiting not_started starting initializing validating",
        "in_progress": "in_progress inprogress processing running started working active "
        "generating",
        "completed": "completed complete success succeeded successful done finished ok "
        "stop stopped end_turn eos stop_sequence tool_calls tool_use function_call",
        "incomplete": "incomplete",
        "failed": "failed failure error errored expired timeout timed_out rejected aborted",
        "cancelled": "cancelled canceled",
    }.items()
    for word in words.split()
}
_AT_LIMIT = (
    *("max_output_tokens", "max_tokens", "max_completion_tokens", "max_new_tokens"),
    *("length", "token_limit"),
)
_FILTERED = ("content_filter", "content_filtered")


def status_of(said: str | None, *, has_items: bool) -> str | None:
    """One of `RUNNING` or `END_STATUSES`, as far as the word says so.

    With output items a word that nobody knows is the end of an answer; without, it stays as it is.
    """
    if said in END_STATUSES:
        return said
    word = _word(said)
    if word in _AT_LIMIT or word in _FILTERED:
        return "incomplete"
    return None if word is None else _STATUSES.get(word, "completed" if has_items else said)


def ended(
    said: str | None, reason: str | None, *, has_items: bool
) -> tuple[str | None, str | None]:
    """The status as `status_of` has it, and why the answer is incomplete.

    A reason makes an answer incomplete that calls itself completed, unless the reason is only a
    word for a whole answer. A status may be a reason (`length`).
    """
    status = status_of(said, has_items=has_items)
    if status == "completed" and reason is not None:
        if (word := _word(reason)) is None or _STATUSES.get(word) == "completed":
            return status, None
        return "incomplete", reason
    if status == "incomplete" and _word(reason) is None:
        return status, None if _word(said) == status else said
    return status, reason


def is_at_limit(reason: str | None) -> bool:
    """Whether an answer with this reason was cut by its token limit; None: incomplete without."""
    return reason is None or _word(reason) in _AT_LIMIT


def _word(said: str | None) -> str | None:
    """In small letters; None where nothing is said."""
    word = (said or "").strip().lower().replace("-", "_").replace(" ", "_")
    return None if word in ("", "none", "null") else word
