"""For mkdocs: links to files of the repository outside docs/ lead to its web page if mkdocs.yml has a `repo_url`, and are plain
text on the site otherwise."""

import posixpath
import re

LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(((?!\w+:)[^)#\s]+)(#[^)\s]*)?\)")


def on_page_markdown(markdown, page, config, files):
    """Called for the text of each page."""

    def rewritten(match):
        path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page.file.src_uri), match[2]))
        if path.startswith("docs/"):
            return match[0]
        return f"[{match[1]}]({config.repo_url.rstrip('/')}/blob/main/{path})" if config.repo_url else match[1]

    return LINK.sub(rewritten, markdown)
