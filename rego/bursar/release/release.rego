# METADATA
# scope: package
# title: Release
# description: |
#   The gate that people's own CI/CD asks before a release. `environments[env]`, or `*` for one that has no entry,
#   says at which risk levels it is open, the least headroom, how many SLOs must watch it and what each must show,
#   and its window, which like the freezes of the calendar stands in the tables of package change.
# schemas:
#   - input: schema.input.release
package bursar.release

import rego.v1

import data.bursar.budget
import data.bursar.change

# METADATA
# title: Decision
# description: Go or no-go, and every reason for a no-go.
# scope: document
# entrypoint: true
decision := {"allow": true, "reasons": [], "obligations": {}} if {
	count(reasons) == 0
} else := {"allow": false, "reasons": reasons, "obligations": {}}

# METADATA
# title: Reasons
# description: Why a release is refused - what is wrong with it, its SLOs by id, then the headroom.
reasons := array.concat(
	[{"code": code, "message": denied[code]} | some code in _codes],
	array.concat(_slo_reasons, budget.headroom_short(_least)),
)

_codes := [
	"release_malformed",
	"environment_unknown",
	"frozen",
	"outside_window",
	"calendar_freeze",
	"risk_too_high",
	"slos_missing",
	"slos_unhealthy",
]

# METADATA
# title: Denied
# description: A message for each code that denies. Each negates a positive fact, so that missing input denies.
# scope: document
denied["release_malformed"] := "The release has no id, team or app." if not _well_formed

denied["environment_unknown"] := "The environment is unknown, and the table has no entry for others." if {
	not _environment_known
}

denied["frozen"] := "The environment is frozen, or it is unknown whether it is." if not _open_for_work

denied["outside_window"] := "The environment has no release window open now." if not _in_window

denied["calendar_freeze"] := "A freeze of the calendar is on, or the time is unknown." if not change.no_freeze

denied["risk_too_high"] := "The risk level is unknown or too high for a release." if not _level_open

denied["slos_missing"] := "Fewer SLOs watch the release than must here, or their list is missing." if not _slos_enough

denied["slos_unhealthy"] := "An SLO is not healthy enough for a release." if not _slos_healthy

_environment := data.bursar.release.environments[input.env.name] if {
	data.bursar.release.environments[input.env.name]
} else := data.bursar.release.environments["*"] if {
	is_string(input.env.name)
}

_environment_known if is_object(_environment)

_open_for_work if input.env.freeze == false

_in_window if change.window_open(_environment.window)

_level_open if _environment.levels[input.risk.level] == true

default _least := {}

_least := _environment.headroom_permille_min if is_object(_environment.headroom_permille_min)

_well_formed if {
	every text in [input.release.id, input.release.team, input.release.app] {
		is_string(text)
		text != ""
	}
}

_slos_enough if {
	slos := input.slos
	is_array(slos)
	budget.at_least(count(slos), _environment.slos_min)
}

_slos_healthy if {
	is_array(input.slos)
	every slo in input.slos {
		_healthy(slo)
	}
}

_healthy(slo) if {
	is_string(slo.id)
	_state_open(slo)
	_error_budget_enough(slo)
	_burn_low(slo)
}

_state_open(slo) if _environment.slo_states[slo.state] == true

_error_budget_enough(slo) if budget.at_least(slo.remaining_permille, _environment.slo.remaining_permille_min)

_burn_low(slo) if {
	budget.at_least(_environment.slo.fast_burn_milli_max, slo.fast_burn_milli)
	budget.at_least(_environment.slo.slow_burn_milli_max, slo.slow_burn_milli)
}

_slo_reasons := [{"code": fault.code, "message": concat("", ["SLO ", slo.id, fault.message])} |
	some slo in input.slos
	is_string(slo.id)
	not _healthy(slo)
	fault := _fault(slo)
]

# The first thing that is wrong with an SLO.
_fault(slo) := {"code": "slo_state", "message": " is in a state in which nothing is released here."} if {
	not _state_open(slo)
} else := {"code": "slo_error_budget_low", "message": " has less of its error budget left than is needed here."} if {
	not _error_budget_enough(slo)
} else := {"code": "slo_burning", "message": " burns its error budget faster than is allowed here."}
