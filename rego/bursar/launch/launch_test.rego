package bursar.launch_test

import rego.v1

import data.bursar.launch

now_s := 1800000000

asked := {
	"target": {"kind": "model", "id": "sim-large"},
	"env": {"name": "prod"},
	"at": {"weekday": 1, "minute": 600, "s": now_s},
}

# Each fact replaced whole, because OPA's union goes deep and the embedded engine's does not.
replaced(base, facts) := object.union(object.remove(base, object.keys(facts)), facts)

target(kind, id) := replaced(asked, {"target": {"kind": kind, "id": id}})

entry(id, kind) := {
	"id": id,
	"kind": kind,
	"target": {"kind": "model", "id": "sim-large"},
	"tier": "medium",
	"env": "prod",
	"by": "safety",
	"at_s": now_s - 86400,
	"expires_at_s": now_s + 86400,
	"reference": "case 17",
}

evaluation := replaced(entry("ev-1", "evaluation"), {"score_permille": 850})

privacy := entry("ev-2", "privacy_review")

complete := {
	"evidence": [evaluation, privacy],
	"mitigations": [entry("mi-1", "rollback_plan"), entry("mi-2", "sampled_traces")],
}

with_evaluation(facts) := replaced(complete, {"evidence": [replaced(evaluation, facts), privacy]})

without_evaluations(name) := replaced(complete, {"evidence": [object.remove(evaluation, [name]), privacy]})

# One `with` for all tests: the embedded engine compiles the policy anew for each that it meets.
decided_over(tables, given) := decision if {
	evidence := object.get(tables, "evidence", [])
	mitigations := object.get(tables, "mitigations", [])
	requirements := object.get(tables, "requirements", data.bursar.launch.requirements)
	covers := object.get(tables, "covers", data.bursar.launch.covers)
	models := object.get(tables, "models", data.bursar.risk.models)
	decision := launch.decision with input as given
		with data.bursar.launch.evidence as evidence
		with data.bursar.launch.mitigations as mitigations
		with data.bursar.launch.requirements as requirements
		with data.bursar.launch.covers as covers
		with data.bursar.risk.models as models
}

codes_of(decision) := [reason.code | some reason in decision.reasons]

codes_for(tables, given) := codes_of(decided_over(tables, given))

test_target_with_all_its_evidence_may_be_enabled if {
	decided_over(complete, asked) == {"allow": true, "reasons": [], "obligations": {}}
}

test_evidence_for_any_environment_and_a_higher_tier_counts if {
	codes_for(with_evaluation({"env": "*", "tier": "high"}), asked) == []
}

test_what_is_missing_is_named if {
	decision := decided_over({}, asked)
	codes_of(decision) == [
		"evidence_incomplete",
		"mitigations_incomplete",
		"evidence_missing",
		"evidence_missing",
		"mitigation_missing",
		"mitigation_missing",
	]
	decision.reasons[2].message == "The target has no evidence of kind evaluation."
	decision.reasons[5].message == "The target has no mitigation of kind sampled_traces."
}

faults := [
	["evidence_expired", {"expires_at_s": now_s}],
	["evidence_expired", {"at_s": now_s - 15552001}],
	["evidence_expired", {"expires_at_s": "9999999999"}],
	["evidence_not_yet_valid", {"at_s": now_s + 1}],
	["evidence_wrong_tier", {"tier": "low"}],
	["evidence_wrong_tier", {"tier": 5}],
	["evidence_wrong_environment", {"env": "demo"}],
	["evidence_self_approved", {"by": "platform"}],
	["evidence_self_approved", {"by": ""}],
	["evidence_unreferenced", {"reference": ""}],
	["evidence_below_threshold", {"score_permille": 799}],
	["evidence_below_threshold", {"score_permille": "999"}],
]

test_each_fault_of_evidence_is_named_with_its_id if {
	named := [fault |
		some fault in faults
		decision := decided_over(with_evaluation(fault[1]), asked)
		codes_of(decision) == ["evidence_incomplete", fault[0]]
		startswith(decision.reasons[1].message, "The evidence ev-1 ")
	]
	count(named) == 12
}

test_each_missing_fact_of_evidence_denies if {
	refused := [name |
		some name in ["id", "kind", "target", "tier", "env", "by", "at_s", "expires_at_s", "reference", "score_permille"]
		decision := decided_over(without_evaluations(name), asked)
		decision.allow == false
		"evidence_incomplete" in codes_of(decision)
	]
	count(refused) == 10
}

test_evidence_of_another_target_is_none if {
	other := with_evaluation({"target": {"kind": "tool", "id": "sim-large"}})
	codes_for(other, asked) == ["evidence_incomplete", "evidence_missing"]
}

test_one_valid_entry_is_enough if {
	expired := replaced(evaluation, {"id": "ev-0", "expires_at_s": 5})
	codes_for(replaced(complete, {"evidence": [expired, evaluation, privacy]}), asked) == []
}

test_mitigation_that_expired_is_named if {
	expired := replaced(entry("mi-1", "rollback_plan"), {"expires_at_s": 5})
	tables := {"evidence": complete.evidence, "mitigations": [expired, entry("mi-2", "sampled_traces")]}
	decision := decided_over(tables, asked)
	codes_of(decision) == ["mitigations_incomplete", "mitigation_expired"]
	decision.reasons[1].message == "The mitigation mi-1 has expired, or is older than is allowed here."
}

test_environment_without_an_entry_asks_for_as_much_as_any if {
	"evidence_incomplete" in codes_for({}, replaced(asked, {"env": {"name": "production"}}))
	codes_for({}, replaced(asked, {"env": {"name": "demo"}})) == []
}

test_tools_have_tiers_too if {
	"evidence_missing" in codes_for({}, target("tool", "browser"))
	codes_for({}, replaced(target("tool", "search"), {"env": {"name": "demo"}})) == []
	mine := {"kind": "tool", "id": "search"}
	evidence := [replaced(evaluation, {"target": mine})]
	codes_for({"evidence": evidence}, target("tool", "search")) == []
}

test_target_that_nobody_registered_is_refused if {
	"target_unknown" in codes_for(complete, target("model", "gpt-9"))
	"target_unknown" in codes_for(complete, target("tool", "gizmo"))
	"target_unknown" in codes_for(complete, target("team", "search"))
}

deprived contains object.remove(asked, [section]) if some section in {"target", "env", "at"}

deprived contains replaced(asked, {"target": {"kind": "model"}})

deprived contains replaced(asked, {"target": {"id": "sim-large"}})

deprived contains replaced(asked, {"env": {}})

deprived contains replaced(asked, {"at": {"weekday": 1, "minute": 600}})

deprived contains replaced(asked, {"at": {"s": "1800000000"}})

deprived contains {}

test_each_missing_fact_denies if {
	count(deprived) == 9
	refused := [decision |
		some lacking in deprived
		decision := decided_over(complete, lacking)
		decision.allow == false
		count(decision.reasons) > 0
	]
	count(refused) == 9
}

required(facts) := {"*": {"medium": replaced({"evidence": [{"kind": "evaluation"}], "mitigations": []}, facts)}}

test_environment_that_has_an_entry_without_the_tier_does_not_fall_back if {
	tiers := {"medium": {"evidence": [], "mitigations": []}}
	codes_for({"requirements": {"*": tiers}}, asked) == []
	codes := codes_for({"requirements": {"*": tiers, "prod": {"low": {"evidence": [], "mitigations": []}}}}, asked)
	"requirements_unknown" in codes
}

wrong_tables := [
	{"requirements": 5},
	{"requirements": {"*": 5}},
	{"requirements": {"*": {"medium": 5}}},
	{"requirements": required({"evidence": 5})},
	{"requirements": required({"evidence": ["evaluation"]})},
	{"requirements": required({"mitigations": "rollback_plan"})},
	{"requirements": required({"mitigations": [5]})},
	{"evidence": 5},
	{"evidence": [5]},
	{"mitigations": 5},
	{"mitigations": ["rollback_plan"]},
	{"covers": 5},
	{"covers": {"medium": {"medium": 1}}},
	{"models": 5},
	{"models": {"sim-large": 5}},
	{"models": {"sim-large": {"tier": "medium"}}},
	{"models": {"sim-large": {"tier": "medium", "owner": ""}}},
	{"models": {"sim-large": {"tier": 5, "owner": "platform"}}},
]

test_wrong_tables_deny if {
	every tables in wrong_tables {
		decision := decided_over(replaced(complete, tables), asked)
		decision.allow == false
		count(decision.reasons) > 0
	}
}
