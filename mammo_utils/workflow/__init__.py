"""Executing a study: notebooks, states, reports."""

import sys

# jsonschema, which reads notebooks, would compile a grammar for IRIs in every process, two seconds of processor time;
# no notebook's schema has an IRI. An entry of None makes its optional import fail.
sys.modules.setdefault("rfc3987_syntax", None)
