package bursar.budget_test

import rego.v1

import data.bursar.budget

least := {"budget": 200, "risk": 0, "error_budget": 100, "overall": 50}

enough := {"budget": 200, "risk": 0, "error_budget": 100, "overall": 50}

codes := [reason.code | some reason in budget.headroom_short(least)]

test_headroom_that_is_just_enough_is_not_short if {
	codes == [] with input as {"headroom": enough}
}

test_each_kind_of_headroom_can_be_short if {
	every kind, code in {
		"budget": "headroom_budget_low",
		"risk": "headroom_risk_low",
		"error_budget": "headroom_error_budget_low",
		"overall": "headroom_overall_low",
	} {
		codes == [code] with input as {"headroom": object.union(enough, {kind: least[kind] - 1})}
		codes == [code] with input as {"headroom": object.remove(enough, [kind])}
		codes == [code] with input as {"headroom": object.union(enough, {kind: "999"})}
	}
}

test_headroom_that_is_unknown_is_short if {
	count(codes) == 4 with input as {}
	count(codes) == 4 with input as {"headroom": 1000}
}

test_a_table_without_a_threshold_is_short if {
	short := budget.headroom_short({}) with input as {"headroom": enough}
	count(short) == 4
	short_of_text := budget.headroom_short(object.union(least, {"risk": "0"})) with input as {"headroom": enough}
	count(short_of_text) == 1
}

test_only_numbers_are_compared if {
	budget.at_least(2, 1)
	budget.at_least(10, 9)
	not budget.at_least(1, 2)
	not budget.at_least("2", 1)
	not budget.at_least(2, null)
}

bands_of(terms) := {band | some band in ["ok", "warn", "critical", "exhausted"]; is_object(terms[band])}

test_every_name_of_terms_has_every_band if {
	every terms in data.bursar.budget.terms {
		count(bands_of(terms)) == 4
	}
}
