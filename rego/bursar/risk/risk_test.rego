package bursar.risk_test

import rego.v1

import data.bursar.risk

signals := {
	"policy_violation",
	"tool_blocked",
	"verification_failed",
	"upstream_error",
	"spend_anomaly",
	"rollback",
	"quality_failed",
}

# An outage of a runtime is nobody's behaviour, and must not shut out who is served by it.
weighs("upstream_error", 0)

weighs(signal, weight) if {
	signal != "upstream_error"
	weight > 0
}

test_scoring_weighs_every_signal if {
	object.keys(risk.scoring.weights_milli) == signals
	every signal, weight in risk.scoring.weights_milli {
		weighs(signal, weight)
	}
}

test_levels_rise_in_order_and_fall_lower if {
	rises := risk.scoring.rises_at_milli
	rises.elevated < rises.high
	rises.high < rises.critical
	rises.critical <= risk.scoring.score_max_milli
	falls := risk.scoring.falls_at_milli
	every level in ["elevated", "high", "critical"] {
		falls[level] < rises[level]
		falls[level] > 0
	}
}

test_levels_known if {
	every level in ["normal", "elevated", "high"] {
		risk.level_known with input as {"risk": {"level": level}}
	}
	not risk.level_known with input as {"risk": {"level": "critical"}}
	not risk.level_known with input as {"risk": {"level": "unheard of"}}
	not risk.level_known with input as {}
}

test_normal_level_adds_nothing if {
	risk.obligations == {} with input as {"risk": {"level": "normal"}}
	risk.verify == [] with input as {"risk": {"level": "normal"}}
	risk.tool_checks("high") == [] with input as {"risk": {"level": "normal"}}
	risk.output_cap({"max_output_tokens": 100}) == {} with input as {"risk": {"level": "normal"}}
}

checks_at_high(tier) := checks if {
	checks := risk.tool_checks(tier) with input as {"risk": {"level": "high"}}
}

test_checks_of_an_unknown_tier_are_undefined if {
	[checks | some tier in ["low", "huge", "high"]; checks := checks_at_high(tier)] == [
		["tool_calls"],
		["tool_calls", "human"],
	]
}

test_cap_is_a_share_rounded_down if {
	tables := {"high": {"output_permille": 333}}
	risk.output_cap({"max_output_tokens": 1000}) == {"max_output_tokens": 333} with input as {"risk": {"level": "high"}}
		with data.bursar.risk.restrictions as tables
	risk.output_cap({"max_output_tokens": 5}) == {"max_output_tokens": 1} with input as {"risk": {"level": "high"}}
		with data.bursar.risk.restrictions as tables
	risk.output_cap({}) == {} with input as {"risk": {"level": "high"}}
}

capped_at(share) := cap if {
	cap := risk.output_cap({"max_output_tokens": 100}) with input as {"risk": {"level": "high"}}
		with data.bursar.risk.restrictions as {"high": {"output_permille": share}}
}

test_cap_is_undefined_where_the_table_is_wrong if {
	count([cap | some share in ["500", true, null, [500], -1, 1001]; cap := capped_at(share)]) == 0
	capped_at(1000) == {"max_output_tokens": 100}
}

capped_over(least) := cap if {
	terms := {"max_output_tokens": 100, "min_output_tokens": least}
	cap := risk.output_cap(terms) with input as {"risk": {"level": "high"}}
}

test_a_least_output_that_is_no_number_leaves_no_cap if {
	caps := [cap.max_output_tokens | some least in [16, "16", 60]; cap := capped_over(least)]
	caps == [50, 60]
}

test_distinct_keeps_the_first_of_each if {
	risk.distinct(["b", "a", "b", "c", "a"]) == ["b", "a", "c"]
	risk.distinct([]) == []
}

test_every_model_has_a_tier_of_the_table if {
	every name, _ in data.bursar.risk.models {
		is_object(data.bursar.risk.model_tiers[risk.model_tier(name)])
	}
}

# The clearances that a tier admits at a level, and not at the level below it.
opened contains [tier, level, clearance] if {
	some tier, levels in data.bursar.risk.model_tiers
	some below, level in {"normal": "elevated", "elevated": "high", "high": "critical"}
	some clearance, _ in levels[level]
	not admits(levels, below, clearance)
}

admits(levels, level, clearance) if levels[level][clearance] == true

test_a_higher_level_opens_nothing_that_a_lower_one_closes if {
	count(opened) == 0
}
