"""Flows whose parameters are the fields of a settings model: one form on Prefect's page, one set of descriptions."""

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

from prefect import Flow, flow

from flows.hooks import explain_failure
from flows.settings import RunSettings
from flows.stage import alone_in


def settings_flow(model: type[RunSettings], name: str) -> Callable[[Callable[..., Any]], Flow]:
    """Make a flow that takes each field of `model` as a keyword, and calls its function with the checked model.

    The function has exclusive use of the run's folder. Types, bounds, defaults and descriptions reach Prefect through
    the flow's signature and docstring. Failures are explained on the run's page.

    Args:
        model: the settings; each field has a default and a description.
        name: name of the flow; a run is named by its settings.
    """

    def decorate(function: Callable[..., Any]) -> Flow:
        @functools.wraps(function)
        def with_parameters(**parameters: Any) -> Any:
            settings = model(**parameters)
            with alone_in(settings.folder):
                return function(settings)

        summary = inspect.getdoc(function) or ""
        fields = model.model_fields.items()
        with_parameters.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [
                inspect.Parameter(
                    name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=field.default,
                    annotation=Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation,
                )
                for name, field in fields
            ]
        )
        descriptions = "\n".join(f"    {name}: {field.description}" for name, field in fields)
        with_parameters.__doc__ = f"{summary}\n\nArgs:\n{descriptions}"
        hooks = {"on_failure": [explain_failure], "on_crashed": [explain_failure]}
        return flow(name=name, flow_run_name="{name}", description=summary, **hooks)(with_parameters)

    return decorate
