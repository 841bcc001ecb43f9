"""A page taken apart."""

from html.parser import HTMLParser


class Tags(HTMLParser):
    """All tags with their attributes, and the visible text of each element with an id (nested ones included)."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, str] = {}
        self._open: list[tuple[str, str]] = []
        self.feed(page)
        assert [tag for tag, _ in self._open] == []

    def count(self, tag: str, css: str) -> int:
        """Elements of a class."""
        return sum(name == tag and css in (attributes.get("class") or "").split() for name, attributes in self.tags)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img", "br"):
            self._open.append((tag, dict(attrs).get("id") or ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        for _, name in self._open:
            self.text[name] = self.text.get(name, "") + data
