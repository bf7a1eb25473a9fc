"""Errors for unknown names."""

from alexnet.errors import UserError, unknown_name


def test_close_names_are_suggested():
    error = unknown_name("architecture", "ccode2012", ["paper", "code2012", "lenet"])
    assert isinstance(error, ValueError)
    assert str(error) == "There is no architecture 'ccode2012'; did you mean 'code2012'?"


def test_all_names_are_listed_if_none_is_close():
    assert str(unknown_name("recipe", "zzz", ["a1", "b2"])) == "There is no recipe 'zzz'; choose one of a1, b2."


def test_user_error_is_a_value_error():
    assert issubclass(UserError, ValueError)
