"""Settings of the site that tools/build_docs.py builds from these pages."""

from sphinx.addnodes import pending_xref
from sphinx.util.nodes import find_pending_xref_condition

project = "megagpt"
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
# Anchors of headings down to this level are those of GitHub, so that links work there too.
myst_heading_anchors = 4
suppress_warnings = ["misc.highlighting_failure"]  # examples with ... in place of code
smartquotes = False  # quotes are as they were typed, and the build is faster
html_theme = "furo"
html_title = "megagpt"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_show_copyright = False
html_use_index = False  # the search finds names
html_copy_source = False
add_module_names = False
toc_object_entries_show_parents = "hide"
python_maximum_signature_line_length = 100
python_use_unqualified_type_names = True


def setup(app):
    """In signatures megagpt's own classes, which tools/api_pages.py names in full, are links; other types are not."""
    app.connect("doctree-read", unlink_other_types)


def unlink_other_types(app, doctree):
    """Without this a builtin such as `bytes` would link to any attribute of that name."""
    for node in list(doctree.findall(pending_xref)):
        if node.get("refdomain") == "py" and not node["reftarget"].startswith("megagpt."):
            shown = find_pending_xref_condition(node, "*") or node
            node.replace_self(shown.children)
