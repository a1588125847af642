"""Ways to compose a query from a reference picture and a modification: one registry for clients, command line
and evaluation.

```python
recipe = recipe_of("caption")
settings = make_settings("caption", {"modification_share": 0.45}, dataset="cirr")
check_needs(recipe, settings, client.lineup())
query = drive(recipe.plan("in blue", settings, limit=77), lambda need: client.answer(need, "dress.jpg"))
```
"""

from tercet.compositions.driving import drive
from tercet.compositions.needs import dump, load, worth_keeping
from tercet.compositions.registry import (
    COMPOSITIONS,
    Recipe,
    check_needs,
    make_settings,
    read_settings,
    recipe_of,
)
from tercet.compositions.scoring import ComposedQuery, Increment, Linear, Product, Scoring
from tercet.compositions.settings import DATASET_DEFAULTS, Settings

__all__ = [
    "COMPOSITIONS",
    "DATASET_DEFAULTS",
    "ComposedQuery",
    "Increment",
    "Linear",
    "Product",
    "Recipe",
    "Scoring",
    "Settings",
    "check_needs",
    "drive",
    "dump",
    "load",
    "make_settings",
    "read_settings",
    "recipe_of",
    "worth_keeping",
]
