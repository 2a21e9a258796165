"""Claims about promotion and rollback, on a real SQLite store."""

import dataclasses
import itertools

import pytest
import yaml

from exemplar.config import Promotion
from exemplar.errors import RegistryError
from exemplar.registry import aliases
from exemplar.registry.lock import held

_numbers = itertools.count()


@pytest.fixture
def name(store):
    """A model of its own with versions 1, 2, 3; the third is challenger."""
    model = f"model-{next(_numbers)}"
    store.client.create_registered_model(model)
    for _ in range(3):
        store.client.create_model_version(model, source="file:///nowhere")
    store.client.set_registered_model_alias(model, "challenger", "3")
    return model


def put(store, name, **wanted):
    """Set exactly these aliases, whatever was there."""
    for alias in aliases.aliases_of(store, name):
        store.client.delete_registered_model_alias(name, alias)
    for alias, version in wanted.items():
        store.client.set_registered_model_alias(name, alias, version)


def test_the_first_promotion_makes_a_champion_and_no_previous(store, name):
    """A rollback could lead to a version that never was champion."""
    aliases.promote(store, name, "3")
    assert aliases.aliases_of(store, name) == {"champion": "3"}


def test_promotion_keeps_the_old_champion_as_previous(store, name):
    """There would be nothing to go back to."""
    aliases.promote(store, name, "1")
    aliases.promote(store, name, "2")
    expected = {"champion": "2", "previous": "1", "challenger": "3"}
    assert aliases.aliases_of(store, name) == expected


def test_promoting_again_changes_nothing(store, name):
    """A repeated step would make the champion its own predecessor."""
    aliases.promote(store, name, "1")
    aliases.promote(store, name, "3")
    before = aliases.aliases_of(store, name)
    aliases.promote(store, name, "3")
    assert aliases.aliases_of(store, name) == before == {"champion": "3", "previous": "1"}


def test_rollback_returns_to_previous_and_a_second_one_undoes_it(store, name):
    """A rollback by mistake would lose the better model."""
    put(store, name, champion="2", previous="1")
    assert aliases.rollback(store, name) == "1"
    assert aliases.aliases_of(store, name) == {"champion": "1", "previous": "2"}
    assert aliases.rollback(store, name) == "2"
    assert aliases.aliases_of(store, name) == {"champion": "2", "previous": "1"}


def test_rollback_with_nothing_to_return_to_is_an_error_that_changes_nothing(store, name):
    """Queries would be left without a model."""
    aliases.promote(store, name, "3")
    with pytest.raises(RegistryError, match=r"nothing to roll back to.*champion -> 3"):
        aliases.rollback(store, name)
    assert aliases.aliases_of(store, name) == {"champion": "3"}
    with pytest.raises(RegistryError, match=r"nothing to roll back to.*none"):
        aliases.rollback(store, "no-such-model")


def test_a_version_that_does_not_exist_is_not_promoted(store, name):
    """The champion would point at nothing."""
    with pytest.raises(RegistryError, match=r"no version '9'; it has .*1"):
        aliases.promote(store, name, "9")
    with pytest.raises(RegistryError, match="it has none"):
        aliases.promote(store, "no-such-model", "1")


@pytest.mark.parametrize("writes", range(7))
def test_a_promotion_killed_anywhere_leaves_a_champion_and_is_finished_by_repeating(
    store, name, dying, writes
):
    """A kill between two aliases would leave no champion, or lose the one to return to."""
    put(store, name, champion="2", previous="1", challenger="3")
    broken = dataclasses.replace(store, client=dying(store.client, writes))
    with pytest.raises(KeyboardInterrupt):
        aliases.promote(broken, name, "3")
    assert aliases.aliases_of(store, name)["champion"] in {"2", "3"}
    aliases.promote(store, name, "3", lease_s=0.0)
    assert aliases.aliases_of(store, name) == {"champion": "3", "previous": "2"}


@pytest.mark.parametrize("writes", range(5))
def test_a_rollback_killed_anywhere_is_finished_and_not_done_twice_by_repeating(
    store, name, dying, writes
):
    """Repeating a rollback that had half happened would bring the bad model back."""
    put(store, name, champion="2", previous="1")
    broken = dataclasses.replace(store, client=dying(store.client, writes))
    with pytest.raises(KeyboardInterrupt):
        aliases.rollback(broken, name)
    assert aliases.aliases_of(store, name)["champion"] in {"1", "2"}
    assert aliases.rollback(store, name, lease_s=0.0) == "1"
    assert aliases.aliases_of(store, name) == {"champion": "1", "previous": "2"}
    names = {model.name for model in store.client.search_registered_models()}
    assert not [other for other in names if other.startswith(f"{name}.")]


def test_rolling_back_a_promotion_that_was_killed_returns_to_the_champion_before_it(
    store, name, dying
):
    """Version 1, two promotions back, would come to answer queries."""
    put(store, name, champion="2", previous="1", challenger="3")
    broken = dataclasses.replace(store, client=dying(store.client, 3))
    with pytest.raises(KeyboardInterrupt):
        aliases.promote(broken, name, "3")
    assert aliases.rollback(store, name, lease_s=0.0) == "2"


def test_a_champion_that_moved_since_the_comparison_is_not_replaced(store, name):
    """The gate's verdict was about another champion; the new one may be the better."""
    put(store, name, champion="2", previous="1", challenger="3")
    assert not aliases.promote(store, name, "3", instead_of="1")
    assert not aliases.promote(store, name, "3", instead_of="")
    expected = {"champion": "2", "previous": "1", "challenger": "3"}
    assert aliases.aliases_of(store, name) == expected
    assert aliases.promote(store, name, "3", instead_of="2")
    assert aliases.aliases_of(store, name) == {"champion": "3", "previous": "2"}


def test_a_lock_that_goes_while_it_is_refused_is_taken_next(store, name, monkeypatch):
    """MLflow looks at the model in the way only after refusing, and its holder may be done then."""
    from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore

    lock, look = f"{name}.moving", SqlAlchemyStore.get_registered_model
    store.client.create_registered_model(lock)

    def too_late(self, asked):
        monkeypatch.undo()
        self.delete_registered_model(asked)
        return look(self, asked)

    monkeypatch.setattr(SqlAlchemyStore, "get_registered_model", too_late)
    aliases.promote(store, name, "1")
    assert aliases.aliases_of(store, name)["champion"] == "1"


def test_a_lock_taken_over_stops_its_first_holder(store, name):
    """A process that slept for minutes would write over what others did since."""
    with (
        pytest.raises(RegistryError, match="took longer than the lock's lease"),
        held(store, name, lease_s=0.0) as slow,
        held(store, name, lease_s=0.0),
    ):
        slow.check()
    with held(store, name, lease_s=0.0) as again:
        again.check()
        again.check()  # renewed by the first


def test_a_reference_leads_to_a_version_by_alias_and_by_number(store, name):
    """Serving by alias is how a promotion reaches users."""
    put(store, name, champion="2")
    assert aliases.resolve(store, f"models:/{name}@champion") == (name, "2")
    assert aliases.resolve(store, f"models:/{name}/3") == (name, "3")


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("models:/{name}@best", r"no alias 'best'\. Aliases: challenger -> 3; versions: .*1"),
        ("models:/{name}/7", "no version '7'"),
        ("models:/nobody@champion", "no model 'nobody' is registered.*{name}"),
        ("models:/{name}", "is no model reference; expected"),
    ],
)
def test_a_reference_that_leads_nowhere_names_what_there_is(store, name, reference, message):
    """A spelling mistake would end in a stack of HTTP errors."""
    with pytest.raises(RegistryError, match=message.format(name=name)):
        aliases.resolve(store, reference.format(name=name))


def test_the_written_policy_names_the_aliases_and_settings_that_the_code_knows(entry_script):
    """People would rely on rules that nothing carries out."""
    policy = yaml.safe_load((entry_script.parent / "promotion.yaml").read_text(encoding="utf-8"))
    assert set(policy["aliases"]) == {aliases.CHALLENGER, aliases.CHAMPION, aliases.PREVIOUS}
    named = [policy["first_opponent"], *policy["rules"].values()]
    settings = {name for part in named for name in part["settings"]}
    assert settings <= set(Promotion.model_fields)
