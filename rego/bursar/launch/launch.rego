# METADATA
# scope: package
# title: Launch
# description: |
#   Decides whether a model or a tool may be enabled in an environment. `requirements[env][tier]`, or `*` for an
#   environment that has no entry, says which evidence and which mitigations a target of that tier needs; `evidence`
#   and `mitigations` list what there is. Each entry is of one target, for a tier and an environment (`*` for all),
#   signed off by somebody who does not own the target, and valid from `at_s` until `expires_at_s`.
# schemas:
#   - input: schema.input.launch
package bursar.launch

import rego.v1

import data.bursar.budget

# METADATA
# title: Decision
# description: Whether the target may be enabled, and every reason why it may not.
# scope: document
# entrypoint: true
decision := {"allow": true, "reasons": [], "obligations": {}} if {
	count(reasons) == 0
} else := {"allow": false, "reasons": reasons, "obligations": {}}

# METADATA
# title: Reasons
# description: Why a launch is refused - the target, then each thing missing, then each entry that does not count.
reasons := array.concat(
	[{"code": code, "message": denied[code]} | some code in _codes],
	array.concat(_missing, _entry_reasons),
)

_codes := ["target_unknown", "requirements_unknown", "time_unknown", "evidence_incomplete", "mitigations_incomplete"]

# METADATA
# title: Denied
# description: A message for each code that denies. Each negates a positive fact, so that missing input denies.
# scope: document
denied["target_unknown"] := "The target is no registered model or tool with a tier and an owner." if not _target_known

denied["requirements_unknown"] := "Nobody has written down what a target of this tier needs in this environment." if {
	not _requirement_known
}

denied["time_unknown"] := "The time is unknown, so no evidence can be judged." if not _time_known

denied["evidence_incomplete"] := "Evidence that is required at this tier is missing or does not count." if {
	not _evidence_complete
}

denied["mitigations_incomplete"] := "Mitigations that are required at this tier are missing or do not count." if {
	not _mitigations_complete
}

# METADATA
# title: Tier
# description: The tier of the target in the registry of its kind.
tier := _registered.tier

_registered := data.bursar.risk.models[input.target.id] if {
	input.target.kind == "model"
} else := data.bursar.tools.registry[input.target.id] if {
	input.target.kind == "tool"
}

_target_known if {
	is_string(tier)
	is_string(_registered.owner)
	_registered.owner != ""
}

_requirement := _requirements[tier]

# The environment is looked up first and its tier after: one that has an entry without the tier must not fall back.
_requirements := data.bursar.launch.requirements[input.env.name] if {
	data.bursar.launch.requirements[input.env.name]
} else := data.bursar.launch.requirements["*"] if {
	is_string(input.env.name)
}

_requirement_known if {
	is_array(_requirement.evidence)
	is_array(_requirement.mitigations)
}

_time_known if is_number(input.at.s)

_evidence_complete if {
	is_array(_requirement.evidence)
	every required in _requirement.evidence {
		_met(_lists.evidence, required)
	}
}

_mitigations_complete if {
	is_array(_requirement.mitigations)
	every name in _requirement.mitigations {
		_met(_lists.mitigation, {"kind": name})
	}
}

_lists := {"evidence": data.bursar.launch.evidence, "mitigation": data.bursar.launch.mitigations}

_met(entries, required) if {
	some entry in entries
	_answers(entry, required)
	count([fault | some fault in _faults; not _counts(fault.code, entry, required)]) == 0
}

# Whether an entry is of this kind and of the target, be it valid or not.
_answers(entry, required) if {
	is_string(entry.id)
	entry.kind == required.kind
	entry.target == {"kind": input.target.kind, "id": input.target.id}
}

_required := array.concat(
	[{"list": "evidence", "item": item} | some item in _requirement.evidence],
	[{"list": "mitigation", "item": {"kind": name}} | some name in _requirement.mitigations],
)

_unmet := [each | some each in _required; not _met(_lists[each.list], each.item)]

_missing := [reason |
	some each in _unmet
	is_string(each.item.kind)
	count([entry | some entry in _lists[each.list]; _answers(entry, each.item)]) == 0
	reason := {
		"code": concat("_", [each.list, "missing"]),
		"message": concat(" ", ["The target has no", each.list, "of kind", concat("", [each.item.kind, "."])]),
	}
]

_entry_reasons := [reason |
	some each in _unmet
	some entry in _lists[each.list]
	_answers(entry, each.item)
	some fault in _faults
	not _counts(fault.code, entry, each.item)
	reason := {
		"code": concat("_", [each.list, fault.code]),
		"message": concat("", ["The ", each.list, " ", entry.id, fault.message]),
	}
]

_faults := [
	{"code": "expired", "message": " has expired, or is older than is allowed here."},
	{"code": "not_yet_valid", "message": " is not valid yet, or has no date."},
	{"code": "wrong_tier", "message": " is for a lower tier than the target's."},
	{"code": "wrong_environment", "message": " is for another environment."},
	{"code": "self_approved", "message": " is signed by the target's owner, or by nobody."},
	{"code": "unreferenced", "message": " refers to nothing that could be read."},
	{"code": "below_threshold", "message": " has no score, or a lower one than is needed here."},
]

# What an entry shows, by the code of the fault that is its absence.
_counts(code, entry, required) if {
	code == "expired"
	is_number(entry.expires_at_s)
	is_number(input.at.s)
	input.at.s < entry.expires_at_s
	_young(entry, required)
}

_counts(code, entry, required) if {
	code == "not_yet_valid"
	is_string(required.kind)
	budget.at_least(input.at.s, entry.at_s)
}

_counts(code, entry, required) if {
	code == "wrong_tier"
	is_string(required.kind)
	data.bursar.launch.covers[tier][entry.tier] == true
}

_counts(code, entry, required) if {
	code == "wrong_environment"
	is_string(required.kind)
	entry.env in ["*", input.env.name]
}

_counts(code, entry, required) if {
	code == "self_approved"
	is_string(required.kind)
	is_string(entry.by)
	entry.by != ""
	entry.by != _registered.owner
}

_counts(code, entry, required) if {
	code == "unreferenced"
	is_string(required.kind)
	is_string(entry.reference)
	entry.reference != ""
}

_counts(code, entry, required) if {
	code == "below_threshold"
	is_string(entry.id)
	object.get(required, "score_permille_min", null) == null
}

_counts(code, entry, required) if {
	code == "below_threshold"
	budget.at_least(entry.score_permille, required.score_permille_min)
}

_young(entry, required) if {
	is_string(entry.id)
	object.get(required, "age_s_max", null) == null
}

_young(entry, required) if {
	now_s := input.at.s
	is_number(now_s)
	is_number(entry.at_s)
	budget.at_least(required.age_s_max, now_s - entry.at_s)
}
