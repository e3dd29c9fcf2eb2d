"""Values that fit a schema, made from the schema: what every test derived from the schemas draws from."""

from __future__ import annotations

from hypothesis import strategies as st

from bus.wire import Field, Type


def values(type_: Type) -> st.SearchStrategy[object]:
    """Any value of a type, its limits among them."""
    limits = type_.integer_range
    if limits is not None:
        return st.integers(*limits) | st.sampled_from(limits)
    match type_.kind:
        case "void":
            return st.none()
        case "bool":
            return st.booleans()
        case "float32":
            return st.floats(width=32, allow_nan=False)
        case "float64":
            return st.floats(allow_nan=False)
        case "text":
            return st.text()
        case "data":
            return st.binary()
        case "enum":
            return st.sampled_from(type_.names)
        case "list":
            assert type_.element is not None
            return st.lists(values(type_.element), max_size=4)
        case "struct":
            return fields(type_.fields)
    raise AssertionError(f"no values are known for {type_.kind}")


def fields(of: tuple[Field, ...]) -> st.SearchStrategy[dict[str, object]]:
    """A value for each field of a method's parameters or results, or of a struct."""
    return st.fixed_dictionaries({field.name: values(field.type) for field in of})
