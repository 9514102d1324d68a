# METADATA
# scope: package
# title: Change
# description: |
#   Decides whether a proposal of the loop enters a stage. `stages[stage]` says which stages come before, at which
#   risk levels it is open, the least headroom, the widest blast radius, its window by environment and whether it
#   stays open in a freeze; `kinds` which stages a kind of change goes through; `evidence[stage]` what the result of
#   an earlier stage must show. The loop changes no target that `frozen_targets` names, and spends no more than it
#   has left.
# schemas:
#   - input: schema.input.change
package bursar.change

import rego.v1

import data.bursar.budget

# METADATA
# title: Decision
# description: Whether the change may enter the stage, and every reason why it may not.
# scope: document
# entrypoint: true
decision := {"allow": true, "reasons": [], "obligations": {}} if {
	count(reasons) == 0
} else := {"allow": false, "reasons": reasons, "obligations": {}}

# METADATA
# title: Reasons
# description: Why a change is refused - what is wrong with it, its evidence, then what it needs and when.
reasons := array.concat(
	[{"code": code, "message": denied[code]} | some code in _codes],
	array.concat(_evidence_reasons, budget.headroom_short(_least)),
)

_codes := [
	"change_malformed",
	"stage_unknown",
	"stage_not_for_kind",
	"target_frozen",
	"blast_radius_too_wide",
	"loop_budget_short",
	"risk_too_high",
	"frozen",
	"outside_window",
	"calendar_freeze",
	"evidence_incomplete",
]

# METADATA
# title: Denied
# description: A message for each code that denies. Each negates a positive fact, so that missing input denies.
# scope: document
denied["change_malformed"] := "The change has no id, or the loop has no id or owner." if not _well_formed

denied["stage_unknown"] := "The stage is unknown." if not _stage_known

denied["stage_not_for_kind"] := "Changes of this kind do not go through this stage." if not _stage_for_kind

denied["target_frozen"] := "The target is unknown, or frozen for the loop." if not _target_open

denied["blast_radius_too_wide"] := "The change reaches more requests or teams than it may at this stage." if {
	not _blast_radius_within
}

denied["loop_budget_short"] := "The loop has not enough of its budget left for what it asks." if not _loop_budget_enough

denied["risk_too_high"] := "The risk level is unknown or too high for this stage." if not _level_open

denied["frozen"] := "The environment is frozen, and the stage is closed in a freeze." if not _open_for_work

denied["outside_window"] := "The stage has no window open now in this environment." if not _in_window

denied["calendar_freeze"] := "A freeze of the calendar is on, or the time is unknown." if not _calendar_open

denied["evidence_incomplete"] := "Evidence of an earlier stage is missing or not good enough." if {
	not _evidence_complete
}

# METADATA
# title: Window open
# description: Whether a window of this name is open at the time of the input, in minutes of its day.
window_open(name) if {
	some window in data.bursar.change.windows[name]
	input.at.weekday in window.weekdays
	budget.at_least(input.at.minute, window.from_minute)
	is_number(window.to_minute)
	input.at.minute < window.to_minute
}

# METADATA
# title: No freeze
# description: Whether no freeze of the calendar covers the environment and time of the input.
no_freeze if {
	is_array(data.bursar.change.freezes)
	is_string(input.env.name)
	is_number(input.at.s)
	every freeze in data.bursar.change.freezes {
		_elsewhere(freeze)
	}
}

_elsewhere(freeze) if {
	is_string(freeze.env)
	not freeze.env in ["*", input.env.name]
}

_elsewhere(freeze) if {
	is_number(freeze.from_s)
	input.at.s < freeze.from_s
}

_elsewhere(freeze) if budget.at_least(input.at.s, freeze.to_s)

_stage := data.bursar.change.stages[input.change.stage]

_stage_known if is_object(_stage)

_well_formed if {
	every text in [input.change.id, input.change.target, input.loop.id, input.loop.owner] {
		is_string(text)
		text != ""
	}
}

_stage_for_kind if data.bursar.change.kinds[input.change.kind][input.change.stage] == true

_target_open if {
	target := input.change.target
	is_string(target)
	frozen := data.bursar.change.frozen_targets
	is_object(frozen)
	object.get(frozen, target, false) == false
}

_reversibility := "reversible" if input.change.reversible == true

_reversibility := "irreversible" if input.change.reversible == false

_blast_radius_within if {
	widest := _stage.blast_radius_max[_reversibility]
	budget.at_least(widest.requests_permille, input.change.blast_radius.requests_permille)
	budget.at_least(widest.teams, input.change.blast_radius.teams)
	input.change.blast_radius.requests_permille >= 0
	input.change.blast_radius.teams >= 0
}

_loop_budget_enough if {
	every resource in ["gpu_us", "list_cost_nusd"] {
		budget.at_least(input.loop.asked[resource], 0)
		budget.at_least(input.loop.remaining[resource], input.loop.asked[resource])
	}
}

_level_open if _stage.levels[input.risk.level] == true

_open_for_work if input.env.freeze == false

_open_for_work if {
	input.env.freeze == true
	_stage.open_in_freeze == true
}

_in_window if {
	name := input.env.name
	is_string(name)
	windows := _stage.window
	is_object(windows)
	window_open(object.get(windows, name, object.get(windows, "*", "")))
}

_calendar_open if no_freeze

_calendar_open if {
	is_number(input.at.s)
	_stage.open_in_freeze == true
}

default _least := {}

_least := _stage.headroom_permille_min if is_object(_stage.headroom_permille_min)

_earlier := [stage |
	some stage in _stage.after
	not _skipped(stage)
]

_skipped(stage) if data.bursar.change.kinds[input.change.kind][stage] == false

_evidence_complete if {
	is_array(_stage.after)
	every stage in _earlier {
		_sound(stage)
	}
}

_sound(stage) if {
	_passed(stage)
	_samples_enough(stage)
	_gain_enough(stage)
}

_passed(stage) if input.change.evidence[stage].passed == true

_samples_enough(stage) if {
	budget.at_least(input.change.evidence[stage].samples, data.bursar.change.evidence[stage].samples_min)
}

_gain_enough(stage) if {
	least := data.bursar.change.evidence[stage].gain_permille_low_min
	budget.at_least(input.change.evidence[stage].gain_permille_low, least)
}

_evidence_reasons := [{"code": fault.code, "message": concat("", [fault.message, stage, "."])} |
	some stage in _earlier
	is_string(stage)
	not _sound(stage)
	fault := _fault(stage)
]

# The first thing that is wrong with the evidence of a stage.
_fault(stage) := {"code": "evidence_missing", "message": "There is no evidence of stage "} if {
	not _evidenced(stage)
} else := {"code": "evidence_failed", "message": "The change is not known to have passed stage "} if {
	not _passed(stage)
} else := {"code": "evidence_too_small", "message": "There are too few samples from stage "} if {
	not _samples_enough(stage)
} else := {"code": "evidence_no_gain", "message": "The change may do harm, as far as can be told from stage "}

_evidenced(stage) if is_object(input.change.evidence[stage])
