package bursar.change_test

import rego.v1

import data.bursar.change

shown := {"passed": true, "samples": 5000, "gain_permille_low": 20}

proposal := {
	"change": {
		"id": "c-1",
		"kind": "config",
		"stage": "canary",
		"target": "batching",
		"reversible": true,
		"blast_radius": {"requests_permille": 50, "teams": 1},
		"evidence": {"static": shown, "simulate": shown, "replay": shown},
	},
	"loop": {
		"id": "loop-1",
		"owner": "platform",
		"remaining": {"gpu_us": 1000, "list_cost_nusd": 1000},
		"asked": {"gpu_us": 1000, "list_cost_nusd": 10},
	},
	"headroom": {"budget": 900, "risk": 900, "error_budget": 900, "overall": 900},
	"risk": {"level": "normal"},
	"env": {"name": "prod", "freeze": false},
	"at": {"weekday": 1, "minute": 600, "s": 1800000000},
}

# Each fact replaced whole, because OPA's union goes deep and the embedded engine's does not.
replaced(base, facts) := object.union(object.remove(base, object.keys(facts)), facts)

patched(base, section, facts) := replaced(base, {section: replaced(base[section], facts)})

changed(section, facts) := patched(proposal, section, facts)

# The proposal at an earlier stage of a kind, with the evidence given.
at_stage(kind, stage, evidence) := patched(
	object.remove(proposal, ["at"]),
	"change",
	{"kind": kind, "stage": stage, "evidence": evidence},
)

# One `with` for all tests: the embedded engine compiles the policy anew for each that it meets.
decided(asked) := decision if {
	decision := change.decision with input as asked
}

# The decision over the shipped tables but for those given.
decided_over(tables, asked) := decision if {
	kinds := object.get(tables, "kinds", data.bursar.change.kinds)
	stages := object.get(tables, "stages", data.bursar.change.stages)
	evidence := object.get(tables, "evidence", data.bursar.change.evidence)
	frozen_targets := object.get(tables, "frozen_targets", data.bursar.change.frozen_targets)
	windows := object.get(tables, "windows", data.bursar.change.windows)
	freezes := object.get(tables, "freezes", data.bursar.change.freezes)
	decision := change.decision with input as asked
		with data.bursar.change.kinds as kinds
		with data.bursar.change.stages as stages
		with data.bursar.change.evidence as evidence
		with data.bursar.change.frozen_targets as frozen_targets
		with data.bursar.change.windows as windows
		with data.bursar.change.freezes as freezes
}

codes_of(decision) := [reason.code | some reason in decision.reasons]

codes(asked) := codes_of(decided(asked))

codes_over(tables) := codes_of(decided_over(tables, proposal))

test_change_with_evidence_enters_the_canary if {
	decided(proposal) == {"allow": true, "reasons": [], "obligations": {}}
}

test_kind_without_the_stage_is_refused if {
	codes(changed("change", {"kind": "spec"})) == ["stage_not_for_kind", "evidence_incomplete", "evidence_missing"]
	"stage_not_for_kind" in codes(changed("change", {"kind": "gizmo"}))
}

test_unknown_stage_is_refused if {
	"stage_unknown" in codes(changed("change", {"stage": "party"}))
}

test_stage_that_a_kind_skips_needs_no_evidence if {
	code := changed("change", {"kind": "code"})
	decision := decided(code)
	codes_of(decision) == ["evidence_incomplete", "evidence_missing"]
	decision.reasons[1].message == "There is no evidence of stage model."
}

test_frozen_target_is_refused if {
	codes(changed("change", {"target": "policy"})) == ["target_frozen"]
}

test_irreversible_change_stays_out_of_the_canary if {
	codes(changed("change", {"reversible": false})) == ["blast_radius_too_wide"]
	codes(changed("change", {"reversible": "yes"})) == ["blast_radius_too_wide"]
}

test_blast_radius_is_limited if {
	every radius in [
		{"requests_permille": 51, "teams": 1},
		{"requests_permille": 50, "teams": 3},
		{"requests_permille": -1, "teams": 1},
		{"requests_permille": 1, "teams": -1},
		{"requests_permille": "1", "teams": 1},
		{"teams": 1},
		{"requests_permille": 1},
		5,
	] {
		codes(changed("change", {"blast_radius": radius})) == ["blast_radius_too_wide"]
	}
}

test_loop_spends_no_more_than_it_has if {
	every asked in [
		{"gpu_us": 1001, "list_cost_nusd": 10},
		{"gpu_us": 10, "list_cost_nusd": 1001},
		{"gpu_us": -1, "list_cost_nusd": 1},
		{"gpu_us": "1", "list_cost_nusd": 1},
		{"gpu_us": 1},
		{},
	] {
		codes(changed("loop", {"asked": asked})) == ["loop_budget_short"]
	}
}

weak := [
	[{"passed": false, "samples": 5000, "gain_permille_low": 20}, "evidence_failed"],
	[{"samples": 5000, "gain_permille_low": 20}, "evidence_failed"],
	[{"passed": true, "samples": 999, "gain_permille_low": 20}, "evidence_too_small"],
	[{"passed": true, "gain_permille_low": 20}, "evidence_too_small"],
	[{"passed": true, "samples": 5000, "gain_permille_low": -1}, "evidence_no_gain"],
	[{"passed": true, "samples": 5000, "gain_permille_low": "1"}, "evidence_no_gain"],
]

test_evidence_that_does_not_show_enough_is_named if {
	named := [pair |
		some pair in weak
		evidence := replaced(proposal.change.evidence, {"replay": pair[0]})
		codes(changed("change", {"evidence": evidence})) == ["evidence_incomplete", pair[1]]
	]
	count(named) == 6
}

test_risk_freezes_the_loop if {
	codes(changed("risk", {"level": "elevated"})) == ["risk_too_high"]
	codes(changed("risk", {"level": "high"})) == ["risk_too_high"]
	early := at_stage("config", "simulate", {"static": shown})
	codes(object.union(early, {"at": proposal.at})) == []
	codes(object.union(patched(early, "risk", {"level": "elevated"}), {"at": proposal.at})) == []
	codes(object.union(patched(early, "risk", {"level": "high"}), {"at": proposal.at})) == ["risk_too_high"]
}

test_freeze_closes_the_canary_and_not_the_simulation if {
	codes(changed("env", {"freeze": true})) == ["frozen"]
	early := at_stage("config", "simulate", {"static": shown})
	codes(object.union(patched(early, "env", {"freeze": true}), {"at": proposal.at})) == []
}

test_windows_close_the_canary if {
	every at in [
		{"weekday": 1, "minute": 539, "s": 1800000000},
		{"weekday": 1, "minute": 1020, "s": 1800000000},
		{"weekday": 4, "minute": 720, "s": 1800000000},
		{"weekday": 5, "minute": 600, "s": 1800000000},
		{"weekday": "1", "minute": 600, "s": 1800000000},
		{"weekday": 1, "minute": "600", "s": 1800000000},
	] {
		codes(changed("at", at)) == ["outside_window"]
	}
	codes(patched(changed("at", {"weekday": 6, "minute": 1439}), "env", {"name": "dev"})) == []
}

freeze := {"env": "prod", "from_s": 1799999999, "to_s": 1800000001}

test_calendar_freezes_the_canary if {
	codes_over({"freezes": [freeze]}) == ["calendar_freeze"]
	codes_over({"freezes": [object.union(freeze, {"env": "*"})]}) == ["calendar_freeze"]
	codes_over({"freezes": [object.union(freeze, {"env": "demo"})]}) == []
	codes_over({"freezes": [object.union(freeze, {"to_s": 1800000000})]}) == []
	codes_over({"freezes": [object.union(freeze, {"from_s": 1800000001})]}) == []
}

test_short_headroom_is_refused if {
	codes(changed("headroom", {"budget": 199})) == ["headroom_budget_low"]
	codes(changed("headroom", {"overall": 199})) == ["headroom_overall_low"]
}

facts := {
	"change": {"id", "kind", "stage", "target", "reversible", "blast_radius", "evidence"},
	"loop": {"id", "owner", "remaining", "asked"},
	"headroom": {"budget", "risk", "error_budget", "overall"},
	"risk": {"level"},
	"env": {"name", "freeze"},
	"at": {"weekday", "minute", "s"},
}

deprived contains object.remove(proposal, [section]) if some section, _ in facts

deprived contains lacking if {
	some section, names in facts
	some name in names
	left := {section: object.remove(proposal[section], [name])}
	lacking := object.union(object.remove(proposal, [section]), left)
}

deprived contains changed("change", {"id": ""})

deprived contains changed("loop", {"owner": 5})

deprived contains {}

test_each_missing_fact_denies if {
	count(deprived) == 30
	refused := [decision |
		some lacking in deprived
		decision := decided(lacking)
		decision.allow == false
		count(decision.reasons) > 0
	]
	count(refused) == 30
}

canary(facts_of_stage) := {"stages": {"canary": replaced(data.bursar.change.stages.canary, facts_of_stage)}}

wrong_tables := [
	{"kinds": 5},
	{"kinds": {"config": {"canary": 1}}},
	{"stages": 5},
	{"stages": {"canary": 5}},
	canary({"after": "static"}),
	canary({"after": [5]}),
	canary({"after": ["party"]}),
	canary({"levels": ["normal"]}),
	canary({"headroom_permille_min": 5}),
	canary({"headroom_permille_min": {}}),
	canary({"blast_radius_max": 5}),
	canary({"window": "always"}),
	canary({"window": {"*": 5}}),
	canary({"window": {}}),
	{"evidence": 5},
	{"evidence": {"static": {}}},
	{"frozen_targets": 5},
	{"frozen_targets": {"batching": "yes"}},
	{"windows": 5},
	{"windows": {"working_hours": 5}},
	{"windows": {"working_hours": [{"weekdays": 1, "from_minute": 0, "to_minute": 1440}]}},
	{"windows": {"working_hours": [{"weekdays": [1], "from_minute": 0, "to_minute": "1440"}]}},
	{"freezes": 5},
	{"freezes": [5]},
	{"freezes": [{"env": "prod", "from_s": "1", "to_s": "2"}]},
	{"freezes": [{"env": 5}]},
]

test_wrong_tables_deny if {
	every tables in wrong_tables {
		decision := decided_over(tables, proposal)
		decision.allow == false
		count(decision.reasons) > 0
	}
}
