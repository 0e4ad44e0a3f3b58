"""What is wrong with the links of pages: broken ones, anchors that do not exist, pictures without a text, a network."""

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

LOADED = {"img": "src", "script": "src", "link": "href", "iframe": "src", "source": "src", "object": "data"}


class Page(HTMLParser):
    """One page: its ids, its links, and what it loads."""

    def __init__(self, path: Path):
        super().__init__()
        self.path, self.ids, self.links, self.wrong = path, [], [], []
        self.feed(path.read_text("utf-8"))
        self.wrong += [
            f"{path.name}: the id {name} occurs twice" for name in {n for n in self.ids if self.ids.count(n) > 1}
        ]

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.ids += [values["id"]] if values.get("id") else []
        self.links += [values[name] for name in ("href", "src") if values.get(name)]
        loaded = values.get(LOADED.get(tag, ""), "") or ""
        if re.match(r"(https?:)?//", loaded) or re.search(r"url\(|@import", values.get("style") or ""):
            self.wrong.append(f"{self.path.name} loads {loaded or values['style']}")
        if tag == "img" and not (values.get("alt") or "").strip():
            self.wrong.append(f"{self.path.name}: a picture has no text: {values.get('src')}")


def wrong_links(folder: Path) -> list[str]:
    """Faults of all pages in a folder, which must be complete in itself."""
    pages = {path.resolve(): Page(path) for path in folder.rglob("*.html")}
    found = [fault for page in pages.values() for fault in page.wrong]
    for path, page in pages.items():
        for link in page.links:
            name, _, anchor = link.partition("#")
            if re.match(r"[a-z]+:", link):
                continue
            target = (path.parent / unquote(name)).resolve() if name else path
            if not target.is_file() or folder.resolve() not in target.parents:
                found.append(f"{page.path.name}: {link} is not a file in the folder")
            elif anchor and unquote(anchor) not in getattr(pages.get(target), "ids", ()):
                found.append(f"{page.path.name}: there is no anchor {link}")
    return found


def wrong_markdown_links(path: Path) -> list[str]:
    """Relative links of a Markdown file to files or headings that do not exist, headings as GitHub names them."""
    found = []
    for link in re.findall(
        r"\]\(([^)\s]+)\)|<img[^>]* src=\"([^\"]+)\"", re.sub(r"(?s)```.*?```|`[^`\n]*`", "", path.read_text("utf-8"))
    ):
        name, _, anchor = "".join(link).partition("#")
        target = path.parent / unquote(name) if name else path
        if re.match(r"[a-z]+:", name):
            continue
        if not target.exists():
            found.append(f"{path.name}: {name} does not exist")
        elif anchor and unquote(anchor) not in github_anchors(target):
            found.append(f"{path.name}: {name} has no heading #{anchor}")
    return found


def github_anchors(path: Path) -> list[str]:
    """The anchors of a Markdown file's headings."""
    text = re.sub(r"(?s)```.*?```", "", path.read_text("utf-8"))
    headings = [heading.lower().replace("`", "") for heading in re.findall(r"(?m)^#+ +(.+?) *$", text)]
    return [re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in headings]
