package bursar.admission_test

import rego.v1

import data.bursar.admission

request := {
	"principal": {"org": "acme", "team": "search", "app": "web", "roles": ["dev"], "clearance": "internal"},
	"intent": {
		"endpoint": "chat",
		"model": "sim-large",
		"tools": [],
		"stream": false,
		"run": {"depth": 0, "steps": "none"},
	},
	"budget": {"band": "ok", "worst": "tokens", "per_resource": {"tokens": "ok"}},
	"risk": {"level": "normal"},
	"env": {"name": "dev", "freeze": false},
}

# Two flat unions, because the embedded engine's union does not go deep.
patched(base, section, facts) := object.union(base, {section: object.union(base[section], facts)})

changed(section, facts) := patched(request, section, facts)

# One `with` for all tests: the embedded engine compiles the policy anew for each that it meets.
decided(asked) := decision if {
	decision := admission.decision with input as asked
}

# The decision over the shipped tables but for those given.
decided_over(tables, asked) := decision if {
	rows := object.get(tables, "rows", data.bursar.admission.rows)
	offers := object.get(tables, "offers", data.bursar.admission.offers)
	terms := object.get(tables, "terms", data.bursar.budget.terms)
	models := object.get(tables, "models", data.bursar.risk.models)
	model_tiers := object.get(tables, "model_tiers", data.bursar.risk.model_tiers)
	restrictions := object.get(tables, "restrictions", data.bursar.risk.restrictions)
	unregistered := object.get(tables, "unregistered", data.bursar.tools.unregistered)
	decision := admission.decision with input as asked
		with data.bursar.admission.rows as rows
		with data.bursar.admission.offers as offers
		with data.bursar.budget.terms as terms
		with data.bursar.risk.models as models
		with data.bursar.risk.model_tiers as model_tiers
		with data.bursar.risk.restrictions as restrictions
		with data.bursar.tools.unregistered as unregistered
}

admitted(asked) := decision.obligations if {
	decision := decided(asked)
	decision.allow
}

codes_of(decision) := [reason.code | some reason in decision.reasons]

codes(asked) := codes_of(decided(asked))

test_search_may_use_every_model if {
	every model, endpoint in {"sim-large": "chat", "sim-small": "completions", "sim-embed": "embeddings"} {
		admitted(changed("intent", {"model": model, "endpoint": endpoint}))
	}
}

test_admitted_request_gets_the_terms_of_its_offer if {
	decided(request) == {
		"allow": true,
		"reasons": [],
		"obligations": {
			"max_output_tokens": 4096,
			"min_output_tokens": 16,
			"fallback_models": ["sim-small"],
			"cache_domain": "team",
			"priority": 10,
			"queue_ms_max": 1000,
		},
	}
}

test_research_may_not_use_the_large_model if {
	codes(changed("principal", {"team": "research"})) == ["model_not_offered"]
}

test_research_may_use_the_small_model if {
	research := changed("principal", {"team": "research"})
	admitted(patched(research, "intent", {"model": "sim-small"}))
}

test_unknown_model_is_not_offered if {
	codes(changed("intent", {"model": "gpt-9"})) == ["model_not_offered"]
}

test_unknown_team_is_offered_nothing if {
	"model_not_offered" in codes(changed("principal", {"team": "sales"}))
}

test_unknown_org_is_offered_nothing if {
	"model_not_offered" in codes(changed("principal", {"org": "evil"}))
}

test_endpoint_that_the_offer_leaves_out_is_denied if {
	codes(changed("intent", {"endpoint": "embeddings"})) == ["endpoint_not_allowed"]
}

test_clearance_lower_than_the_models_is_denied if {
	codes(changed("principal", {"clearance": "public"})) == ["clearance_too_low"]
}

test_unknown_clearance_is_denied if {
	codes(changed("principal", {"clearance": "cosmic"})) == ["clearance_too_low"]
}

test_freeze_denies if {
	codes(changed("env", {"freeze": true})) == ["frozen"]
}

test_freeze_spares_an_exempt_app if {
	admitted(patched(changed("env", {"freeze": true}), "principal", {"app": "indexer"}))
}

test_run_at_the_depth_limit_is_admitted if {
	admitted(changed("intent", {"run": {"depth": 4}}))
}

test_run_over_the_depth_limit_is_denied if {
	codes(changed("intent", {"run": {"depth": 5}})) == ["run_too_deep"]
}

test_depth_that_is_not_a_count_is_denied if {
	every depth in [null, true, -1, "0", [], {}] {
		codes(changed("intent", {"run": {"depth": depth}})) == ["run_too_deep"]
	}
}

test_blocked_tools_are_named if {
	decision := decided(changed("intent", {"tools": ["shell", "browser", "search"]}))
	decision.allow
	decision.obligations.blocked_tools == ["shell"]
}

test_warn_shrinks_to_fit if {
	terms := admitted(changed("budget", {"band": "warn"}))
	terms.shrink_to_fit
	terms.max_output_tokens == 4096
	terms.priority == 10
}

test_critical_shrinks_lowers_the_cap_and_is_served_later if {
	terms := admitted(changed("budget", {"band": "critical"}))
	terms.shrink_to_fit
	terms.max_output_tokens == 512
	terms.priority == 20
}

test_exhausted_is_still_admitted_with_a_fallback if {
	decision := decided(changed("budget", {"band": "exhausted"}))
	decision.allow
	decision.obligations.shrink_to_fit
	decision.obligations.fallback_models == ["sim-small"]
}

test_unknown_band_is_denied if {
	codes(changed("budget", {"band": "fine"})) == ["budget_unknown"]
}

test_elevated_risk_samples_more_and_lowers_the_cap if {
	terms := admitted(changed("risk", {"level": "elevated"}))
	terms.sample_trace == 0.1
	terms.max_output_tokens == 3072
	terms.blocked_tools == []
	terms.verify == []
}

test_elevated_risk_verifies_the_calls_of_high_tools_only if {
	elevated := changed("risk", {"level": "elevated"})
	low := admitted(patched(elevated, "intent", {"tools": ["search"]}))
	low.verify == []
	high := admitted(patched(elevated, "intent", {"tools": ["browser", "search"]}))
	high.verify == ["tool_calls"]
	high.blocked_tools == []
}

test_high_risk_halves_the_cap if {
	terms := admitted(changed("risk", {"level": "high"}))
	terms.max_output_tokens == 2048
	terms.sample_trace == 1
}

test_cap_is_never_lowered_under_the_least_of_the_terms if {
	tables := {"terms": {"large": {"ok": {"max_output_tokens": 20, "min_output_tokens": 16}}}}
	decision := decided_over(tables, changed("risk", {"level": "high"}))
	decision.obligations.max_output_tokens == 16
}

test_checks_of_the_terms_stay_beside_those_of_the_level if {
	tables := {"terms": {"large": {"ok": {"verify": ["secrets", "tool_calls"]}}}}
	risky := changed("risk", {"level": "high"})
	decision := decided_over(tables, patched(risky, "intent", {"tools": ["search"]}))
	decision.obligations.verify == ["secrets", "tool_calls"]
}

test_tools_that_nobody_registered_are_blocked if {
	terms := admitted(changed("intent", {"tools": ["gizmo", "search"]}))
	terms.blocked_tools == ["gizmo"]
}

test_unregistered_tools_can_be_given_a_tier if {
	decision := decided_over({"unregistered": "medium"}, changed("intent", {"tools": ["gizmo"]}))
	decision.obligations.blocked_tools == []
}

test_checks_of_a_tool_are_asked_for if {
	terms := admitted(changed("intent", {"tools": ["tickets/close"]}))
	terms.verify == ["human"]
}

test_star_blocks_every_tool_of_a_row if {
	row := {"offers": {"sim-large": "large"}, "run_depth_max": 4, "blocked_tools": {"*": true}}
	decision := decided_over({"rows": {"*": {"*": {"*": row}}}}, changed("intent", {"tools": ["search"]}))
	decision.obligations.blocked_tools == ["search"]
}

test_model_that_nobody_registered_is_denied if {
	codes_of(decided_over({"models": {}}, request)) == ["model_not_registered"]
}

test_high_tier_needs_confidential_and_closes_at_high_risk if {
	tables := {"models": {"sim-large": {"tier": "high", "owner": "platform"}}}
	codes_of(decided_over(tables, request)) == ["clearance_too_low"]
	codes_of(decided_over(tables, changed("principal", {"clearance": "confidential"}))) == []
	codes_of(decided_over(tables, changed("risk", {"level": "high"}))) == ["risk_too_high"]
}

# Tables whose values have the wrong type: each must deny, and never allow.
denied_over(tables) if {
	decision := decided_over(tables, request)
	decision.allow == false
	count(decision.reasons) > 0
}

rows_with(row) := {"rows": {"acme": {"search": {"*": row}}}}

test_wrong_row_denies if {
	every row in [5, true, [], {"offers": 5}, {"offers": {"sim-large": 5}}] {
		denied_over(rows_with(row))
	}
}

test_wrong_depth_limit_denies if {
	every limit in ["9", true, null, [9], {"9": 9}] {
		denied_over(rows_with({"offers": {"sim-large": "large"}, "run_depth_max": limit, "blocked_tools": {}}))
	}
}

test_wrong_offer_denies if {
	every offer in [5, "chat", [], {"endpoints": 5, "terms": "large"}, {"endpoints": {"chat": 1}, "terms": "large"}] {
		denied_over({"offers": {"large": offer}})
	}
}

test_wrong_terms_deny if {
	every terms in [5, [], {"large": 5}, {"large": {}}] {
		denied_over({"terms": terms})
	}
}

test_wrong_models_deny if {
	every models in [5, [], {"sim-large": 5}, {"sim-large": {"tier": 5}}] {
		denied_over({"models": models})
	}
}

test_wrong_tiers_deny if {
	every tiers in [5, [], {"medium": 5}, {"medium": {"normal": 5}}, {"medium": {"normal": {"internal": 1}}}] {
		denied_over({"model_tiers": tiers})
	}
}

wrong_restrictions := [
	{},
	{"obligations": 5},
	{"obligations": {}, "verify": "pii"},
	{"obligations": {}, "verify": []},
	{"obligations": {}, "verify": [], "output_permille": "500"},
]

test_wrong_restrictions_deny_and_say_so if {
	every restriction in wrong_restrictions {
		decision := decided_over({"restrictions": {"high": restriction}}, changed("risk", {"level": "high"}))
		codes_of(decision) == ["tables_malformed"]
	}
}

test_wrong_list_of_blocked_tools_blocks_every_tool if {
	every blocked in [5, true, ["shell"]] {
		row := {"offers": {"sim-large": "large"}, "run_depth_max": 4, "blocked_tools": blocked}
		decision := decided_over(rows_with(row), changed("intent", {"tools": ["search", "clock"]}))
		decision.obligations.blocked_tools == ["search", "clock"]
	}
}

test_high_risk_blocks_risky_tools_and_verifies if {
	risky := changed("risk", {"level": "high"})
	tools := ["browser", "search", "shell"]
	decision := decided(patched(risky, "intent", {"tools": tools}))
	decision.allow
	decision.obligations.blocked_tools == ["browser", "shell"]
	decision.obligations.verify == ["tool_calls"]
}

test_critical_risk_is_denied if {
	codes(changed("risk", {"level": "critical"})) == ["risk_critical"]
}

test_empty_input_is_denied if {
	decision := decided({})
	not decision.allow
	decision.obligations == {}
	count(decision.reasons) > 0
}

deciding := {
	"principal": {"org", "team", "app", "clearance"},
	"intent": {"endpoint", "model", "tools", "run"},
	"budget": {"band"},
	"risk": {"level"},
	"env": {"freeze"},
}

deprived contains object.remove(request, [section]) if some section, _ in deciding

deprived contains lacking if {
	some section, facts in deciding
	some fact in facts
	left := {section: object.remove(request[section], [fact])}
	lacking := object.union(object.remove(request, [section]), left)
}

deprived contains changed("intent", {"run": "deep"})

test_each_missing_fact_denies if {
	count(deprived) == 17
	refused := [decision |
		some lacking in deprived
		decision := decided(lacking)
		decision.allow == false
		count(decision.reasons) > 0
	]
	count(refused) == 17
}

# Pairings of facts, good and bad: what is granted and what is denied must exclude each other. The tests in Python
# pair many more.
cases := [case |
	some [team, clearance] in [["search", "internal"], ["search", "public"], ["research", "internal"]]
	some [endpoint, freeze] in [["chat", false], ["embeddings", true]]
	some [tools, depth] in [[["shell"], 0], ["shell", 0], [[], 9]]
	some [band, level] in [["critical", "high"], ["none", "critical"]]
	case := {
		"principal": object.union(request.principal, {"team": team, "clearance": clearance}),
		"intent": object.union(request.intent, {"endpoint": endpoint, "tools": tools, "run": {"depth": depth}}),
		"budget": {"band": band},
		"risk": {"level": level},
		"env": {"freeze": freeze},
	}
]

denials(asked) := denied if {
	denied := admission.denied with input as asked
}

# A case is explained if it is refused with as many reasons as there are, or admitted and there are none.
explained(asked) if {
	decision := decided(asked)
	decision.allow
	count(denials(asked)) == 0
	decision.reasons == []
}

explained(asked) if {
	decision := decided(asked)
	not decision.allow
	count(decision.reasons) > 0
	count(decision.reasons) == count(denials(asked))
}

test_granted_and_denied_exclude_each_other if {
	count(cases) == 36
	count([case | some case in cases; explained(case)]) == 36
}
