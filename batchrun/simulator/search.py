"""Web search as a hosted tool: what was looked up, what was found, where a text cites it."""

from random import Random
from typing import Any

from batchrun.simulator import texts

Item = dict[str, Any]
_SOURCES = "web_search_call.action.sources"  # told only where `include` names them
_OFTEN = 0.8  # of the requests that leave it to the model
_OPENS = 0.4
_MARK_EVERY = 2  # paragraphs or sentences between two citations


def is_offered(fields: Item) -> bool:
    """The request brings the tool, of any date."""
    return any(_is_search(tool.get("type")) for tool in fields.get("tools") or [])


def is_used(fields: Item, share: float) -> bool:
    """The model looks something up; `share` is drawn, for where the choice is its own."""
    if not is_offered(fields):
        return False
    choice = fields.get("tool_choice") or "auto"
    if isinstance(choice, dict):
        if choice.get("type") == "allowed_tools":
            return any(_is_search(tool.get("type")) for tool in choice["tools"])
        return _is_search(choice.get("type"))
    return choice == "required" or (choice == "auto" and share < _OFTEN)


def look_up(fields: Item, rng: Random) -> tuple[list[Item], list[Item]]:
    """The actions taken, and the pages found: a search first, then perhaps more."""
    pages = [_page(rng) for _ in range(rng.randint(2, 5))]
    queries = [texts.words(rng) for _ in range(rng.randint(1, 3))]
    search: Item = {"type": "search", "query": queries[0], "queries": queries}
    if _SOURCES in (fields.get("include") or ()):
        search["sources"] = [{"type": "url", "url": page["url"]} for page in pages]
    actions = [search]
    if rng.random() < _OPENS:
        actions.append({"type": "open_page", "url": pages[0]["url"]})
        if rng.random() < _OPENS:
            find = {"type": "find_in_page", "url": pages[0]["url"], "pattern": texts.word(rng)}
            actions.append(find)
    return actions, pages


def cite(text: str, pages: list[Item], rng: Random) -> tuple[str, list[Item]]:
    """The text with links to pages in it, and the annotations that say where each stands.

    Indexes count characters; `text[start_index:end_index]` is the link.
    """
    sentences = text.split(". ")
    made, annotations = "", []
    for place, sentence in enumerate(sentences):
        made += sentence + (". " if place < len(sentences) - 1 else "")
        if place % _MARK_EVERY:
            continue
        page = rng.choice(pages)
        link = f"([{page['title']}]({page['url']}))"
        annotations.append(
            {
                "type": "url_citation",
                "start_index": len(made),
                "end_index": len(made) + len(link),
                "url": page["url"],
                "title": page["title"],
            }
        )
        made += link + " "
    return made.rstrip(" "), annotations


def usage(items: list[Item]) -> Item:
    """`tool_usage`: searches are billed, opening and reading a page is not."""
    count = sum(
        item["type"] == "web_search_call" and item["action"]["type"] == "search" for item in items
    )
    none = {"image_tokens": 0, "text_tokens": 0}
    return {
        "image_gen": {
            "input_tokens": 0,
            "input_tokens_details": none,
            "output_tokens": 0,
            "output_tokens_details": none,
            "total_tokens": 0,
        },
        "web_search": {"num_requests": count},
    }


def _is_search(type_: Any) -> bool:
    return isinstance(type_, str) and type_.startswith("web_search")


def _page(rng: Random) -> Item:
    title = texts.words(rng)
    slug = title.replace(" ", "-")
    where = texts.word(rng)
    return {
        "url": f"https://{where}.example.com/{slug}?utm_source=openai",
        "title": f"{title.capitalize()} | {where} 🙂" if rng.random() < 0.2 else title.capitalize(),
    }
