from alexnet.errors import UserError, unknown_name


def test_a_near_name_is_proposed():
    error = unknown_name("architecture", "ccode2012", ["paper", "code2012", "lenet"])
    assert isinstance(error, ValueError)
    assert str(error) == "There is no architecture 'ccode2012'; did you mean 'code2012'?"


def test_without_a_near_name_all_are_listed():
    assert str(unknown_name("recipe", "zzz", ["a1", "b2"])) == "There is no recipe 'zzz'; choose one of a1, b2."


def test_user_error_is_a_value_error():
    assert issubclass(UserError, ValueError)
