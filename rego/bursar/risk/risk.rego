# METADATA
# scope: package
# title: Risk
# description: |
#   What the tier of a model needs and what a risk level takes away. `models` gives each model a tier and an owner,
#   `model_tiers[tier][level][clearance]` says who may use it while the risk is at that level, and
#   `restrictions[level]` what every request is then held to. The normal level restricts nothing; a level in neither
#   table, as critical is in the shipped ones, admits nothing.
# schemas:
#   - input: schema.input.risk
package bursar.risk

import rego.v1

# METADATA
# title: Scoring
# description: |
#   How the gateway turns signals into a level. A signal adds its weight to the score of its team, app and run, and
#   the score halves every `half_life_s`. Half an hour is long enough that a fault seen once a minute adds up, and
#   short enough that a bad deployment is over within a shift. Weights rank how sure a signal is of harm: one
#   rollback or two anomalies of spend weigh as much as thirty refusals, for which a misconfigured client is the
#   likelier cause. A level is left at half the score that raised it and held for `dwell_s` at least, so that none
#   flickers; `score_max_milli`, twice the critical threshold, bounds how long a flood is remembered to some three
#   half-lives until high again.
# entrypoint: true
scoring := data.bursar.risk.score

# METADATA
# title: Level known
# description: Whether the risk level is one at which anything is admitted.
# scope: document
level_known if input.risk.level == "normal"

level_known if is_object(data.bursar.risk.restrictions[input.risk.level])

# METADATA
# title: Model tier
# description: The tier of a model; undefined, and so denied, for a model that nobody registered.
model_tier(model) := entry.tier if {
	is_string(model)
	models := data.bursar.risk.models
	is_object(models)
	entry := object.get(models, model, {})
}

# METADATA
# title: Model open
# description: Whether models of this tier are used at all while the risk is at this level.
model_open(model) if is_object(data.bursar.risk.model_tiers[model_tier(model)][input.risk.level])

# METADATA
# title: Model cleared
# description: Whether the caller's clearance is enough for a model at this risk level.
model_cleared(model) if {
	data.bursar.risk.model_tiers[model_tier(model)][input.risk.level][input.principal.clearance] == true
}

# METADATA
# title: Obligations
# description: What the risk level adds to the terms of every request.
obligations := {} if {
	input.risk.level == "normal"
} else := _restriction.obligations if {
	is_object(_restriction.obligations)
}

# METADATA
# title: Verify
# description: The checks that the risk level asks for of every request.
verify := [] if {
	input.risk.level == "normal"
} else := _restriction.verify if {
	is_array(_restriction.verify)
}

# METADATA
# title: Tool checks
# description: The checks that the risk level asks for before a call of a tool of some tier is passed on.
tool_checks(tier) := [] if {
	input.risk.level == "normal"
	is_string(tier)
} else := _restriction.tool_checks[tier] if {
	is_array(_restriction.tool_checks[tier])
}

# METADATA
# title: Output cap
# description: |
#   The cap on output tokens lowered to the level's share of it, rounded down, and never under the least that the
#   terms set; empty where the terms have no cap.
output_cap(terms) := {} if {
	object.get(terms, "max_output_tokens", null) == null
} else := {} if {
	input.risk.level == "normal"
} else := {"max_output_tokens": _larger(_share(terms.max_output_tokens), object.get(terms, "min_output_tokens", 1))}

# METADATA
# title: Distinct
# description: A list with each item where it first stands, and no more.
distinct(list) := [item |
	some at in numbers.range(0, count(list) - 1)
	item := list[at]
	not item in array.slice(list, 0, at)
]

_restriction := data.bursar.risk.restrictions[input.risk.level]

# Exact, because the two engines divide and print fractions differently.
_share(amount) := (scaled - (scaled % 1000)) / 1000 if {
	is_number(amount)
	permille := _restriction.output_permille
	is_number(permille)
	permille >= 0
	permille <= 1000
	scaled := amount * permille
}

_larger(one, other) := one if {
	is_number(other)
	one >= other
} else := other if {
	is_number(other)
}
