"""Recipes for plugin tasks: the usual keys, with the plugin's own `task` section."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, get_args

from pydantic import Field, create_model

from distft import plugins
from distft.errors import UserError
from distft.recipe.schema import Recipe
from distft.recipe.tasks import BUILT_IN, AnyTask, CausalLM, TaskSection, type_of


def recipe_class_of(values: Mapping[str, Any]) -> type[Recipe]:
    """The class for a recipe with these values: `Recipe`, unless its task is another package's.

    Raises:
        UserError: what that package brings is no task.
    """
    task = values.get("task")
    name = task.get("type") if isinstance(task, dict) else None
    if not isinstance(name, str) or name in BUILT_IN or name not in plugins.names(plugins.TASK_SECTIONS):
        return Recipe
    section = plugins.find(plugins.TASK_SECTIONS, name, "task")
    if not (isinstance(section, type) and issubclass(section, TaskSection)) or type_of(section) != name:
        raise UserError(
            f"task.type: the entry point '{name}' in {plugins.TASK_SECTIONS} must be a subclass of TaskSection whose "
            f'`type` is Literal["{name}"]; fix the package that provides it'
        )
    return recipe_class_with(section)


@cache
def recipe_class_with(section: type[TaskSection]) -> type[Recipe]:
    built_in: Any = get_args(AnyTask)[0]
    tasks: Any = Annotated[built_in | section, Field(discriminator="type")]
    return create_model("Recipe", __base__=Recipe, task=(tasks, Field(default_factory=CausalLM)))
