package bursar.release_test

import rego.v1

import data.bursar.release

slo := {
	"id": "web-ttft",
	"remaining_permille": 900,
	"fast_burn_milli": 200,
	"slow_burn_milli": 400,
	"state": "ok",
}

asked := {
	"release": {"id": "r-1", "team": "search", "app": "web"},
	"env": {"name": "prod", "freeze": false},
	"headroom": {"budget": 900, "risk": 900, "error_budget": 900, "overall": 900},
	"slos": [slo],
	"risk": {"level": "normal"},
	"at": {"weekday": 1, "minute": 600, "s": 1800000000},
}

# Each fact replaced whole, because OPA's union goes deep and the embedded engine's does not.
replaced(base, facts) := object.union(object.remove(base, object.keys(facts)), facts)

changed(section, facts) := replaced(asked, {section: replaced(asked[section], facts)})

watched(slos) := replaced(asked, {"slos": slos})

in_demo(changes) := replaced(replaced(asked, {"env": {"name": "demo", "freeze": false}}), changes)

# One `with` for all tests: the embedded engine compiles the policy anew for each that it meets.
decided_over(tables, given) := decision if {
	environments := object.get(tables, "environments", data.bursar.release.environments)
	freezes := object.get(tables, "freezes", data.bursar.change.freezes)
	decision := release.decision with input as given
		with data.bursar.release.environments as environments
		with data.bursar.change.freezes as freezes
}

codes_of(decision) := [reason.code | some reason in decision.reasons]

codes(given) := codes_of(decided_over({}, given))

test_release_with_headroom_is_a_go if {
	decided_over({}, asked) == {"allow": true, "reasons": [], "obligations": {}}
}

test_freeze_is_a_no_go if {
	codes(changed("env", {"freeze": true})) == ["frozen"]
}

test_nothing_is_released_outside_the_window if {
	codes(changed("at", {"weekday": 5})) == ["outside_window"]
	codes(in_demo({"at": {"weekday": 5, "minute": 0, "s": 1800000000}})) == []
}

test_calendar_freezes_releases if {
	freeze := {"env": "*", "from_s": 1800000000, "to_s": 1800000001}
	codes_of(decided_over({"freezes": [freeze]}, asked)) == ["calendar_freeze"]
}

test_risk_stops_releases if {
	codes(changed("risk", {"level": "elevated"})) == ["risk_too_high"]
	codes(in_demo({"risk": {"level": "elevated"}})) == []
	codes(in_demo({"risk": {"level": "high"}})) == ["risk_too_high"]
}

test_short_headroom_is_a_no_go if {
	codes(changed("headroom", {"budget": 199})) == ["headroom_budget_low"]
	codes(changed("headroom", {"risk": 499})) == ["headroom_risk_low"]
	codes(changed("headroom", {"error_budget": 249})) == ["headroom_error_budget_low"]
	codes(changed("headroom", {"overall": 199})) == ["headroom_overall_low"]
}

test_unhealthy_slo_is_named if {
	every change in [
		["slo_state", {"state": "burning"}],
		["slo_state", {"state": "no_data"}],
		["slo_state", {"state": 5}],
		["slo_error_budget_low", {"remaining_permille": 249}],
		["slo_error_budget_low", {"remaining_permille": "900"}],
		["slo_burning", {"fast_burn_milli": 6001}],
		["slo_burning", {"slow_burn_milli": 1001}],
		["slo_burning", {"slow_burn_milli": null}],
	] {
		decision := decided_over({}, watched([slo, replaced(replaced(slo, {"id": "web-errors"}), change[1])]))
		codes_of(decision) == ["slos_unhealthy", change[0]]
		startswith(decision.reasons[1].message, "SLO web-errors ")
	}
}

test_missing_fact_of_an_slo_is_a_no_go if {
	every name in ["id", "remaining_permille", "fast_burn_milli", "slow_burn_milli", "state"] {
		"slos_unhealthy" in codes(watched([object.remove(slo, [name])]))
	}
}

test_release_that_nothing_watches_is_a_no_go if {
	codes(watched([])) == ["slos_missing"]
	codes(in_demo({"slos": []})) == []
	codes(watched(5)) == ["slos_missing", "slos_unhealthy"]
	"slos_unhealthy" in codes(watched([5]))
}

test_environment_without_an_entry_is_as_strict_as_any if {
	codes(changed("env", {"name": "production"})) == []
	codes(replaced(changed("env", {"name": "production"}), {"slos": []})) == ["slos_missing"]
}

facts := {
	"release": {"id", "team", "app"},
	"env": {"name", "freeze"},
	"headroom": {"budget", "risk", "error_budget", "overall"},
	"risk": {"level"},
	"at": {"weekday", "minute", "s"},
}

deprived contains object.remove(asked, [section]) if {
	some section in {"release", "env", "headroom", "slos", "risk", "at"}
}

deprived contains lacking if {
	some section, names in facts
	some name in names
	left := {section: object.remove(asked[section], [name])}
	lacking := object.union(object.remove(asked, [section]), left)
}

deprived contains changed("release", {"team": ""})

deprived contains {}

test_each_missing_fact_denies if {
	count(deprived) == 21
	refused := [decision |
		some lacking in deprived
		decision := decided_over({}, lacking)
		decision.allow == false
		count(decision.reasons) > 0
	]
	count(refused) == 21
}

environment(changes) := {"environments": {"*": replaced(data.bursar.release.environments["*"], changes)}}

wrong_tables := [
	{"environments": 5},
	{"environments": {}},
	{"environments": {"*": 5}},
	{"environments": {"prod": {}}},
	environment({"levels": ["normal"]}),
	environment({"headroom_permille_min": 5}),
	environment({"slos_min": "0"}),
	environment({"slo_states": ["ok"]}),
	environment({"slo": 5}),
	environment({"window": "never"}),
	environment({"window": 5}),
	{"freezes": 5},
]

test_wrong_tables_deny if {
	every tables in wrong_tables {
		decision := decided_over(tables, asked)
		decision.allow == false
		count(decision.reasons) > 0
	}
}
