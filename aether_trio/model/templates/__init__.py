"""Go's text/template as closures with a budget, and safe rendering of YAML.

`compile_template` takes a source, `Template.render` gives exactly the text of Go, and
`Template.render_marked` keeps printed values apart from the author's text, so that what a template
prints never becomes structure of the YAML that is parsed from it.

Values are JSON data. A float is a float64, which every number of Go's JSON is, so decode JSON with
`parse_int=float`; an int is Go's int, as constants and `len` are.

Deviations from Go 1.26, all deliberate:

- The option is `missingkey=zero`: a missing key prints `<no value>`, a field of it is an error.
- Budget, nesting and the length of a source are bounded; errors have texts of their own here.
- U+E000, U+E001 and lone surrogates cannot be in a source; bytes that are no UTF-8 leave a
  template as U+FFFD, and so does a lone surrogate in data unless it completes a character.
- `%p` of a list or map fails. A slice has no capacity beyond its length.
- Which characters are letters or printable is Python's version of Unicode, not Go's 15.0.
"""

from aether_trio.model.templates.budget import TemplateBudget as TemplateBudget
from aether_trio.model.templates.errors import TemplateError as TemplateError
from aether_trio.model.templates.placeholders import Marked as Marked
from aether_trio.model.templates.template import Template as Template
from aether_trio.model.templates.template import compile_template as compile_template
