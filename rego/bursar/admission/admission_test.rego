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

codes := [reason.code | some reason in admission.decision.reasons]

test_search_may_use_every_model if {
	every model, endpoint in {"sim-large": "chat", "sim-small": "completions", "sim-embed": "embeddings"} {
		admission.decision.allow with input as changed("intent", {"model": model, "endpoint": endpoint})
	}
}

test_admitted_request_gets_the_terms_of_its_offer if {
	admission.decision == {
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
	} with input as changed("intent", {})
}

test_research_may_not_use_the_large_model if {
	codes == ["model_not_offered"] with input as changed("principal", {"team": "research"})
}

test_research_may_use_the_small_model if {
	research := changed("principal", {"team": "research"})
	admission.decision.allow with input as patched(research, "intent", {"model": "sim-small"})
}

test_unknown_model_is_not_offered if {
	codes == ["model_not_offered"] with input as changed("intent", {"model": "gpt-9"})
}

test_unknown_team_is_offered_nothing if {
	"model_not_offered" in codes with input as changed("principal", {"team": "sales"})
}

test_unknown_org_is_offered_nothing if {
	"model_not_offered" in codes with input as changed("principal", {"org": "evil"})
}

test_endpoint_that_the_offer_leaves_out_is_denied if {
	codes == ["endpoint_not_allowed"] with input as changed("intent", {"endpoint": "embeddings"})
}

test_clearance_lower_than_the_models_is_denied if {
	codes == ["clearance_too_low"] with input as changed("principal", {"clearance": "public"})
}

test_unknown_clearance_is_denied if {
	codes == ["clearance_too_low"] with input as changed("principal", {"clearance": "cosmic"})
}

test_freeze_denies if {
	codes == ["frozen"] with input as changed("env", {"freeze": true})
}

test_freeze_spares_an_exempt_app if {
	admission.decision.allow with input as patched(changed("env", {"freeze": true}), "principal", {"app": "indexer"})
}

test_run_at_the_depth_limit_is_admitted if {
	admission.decision.allow with input as changed("intent", {"run": {"depth": 4}})
}

test_run_over_the_depth_limit_is_denied if {
	codes == ["run_too_deep"] with input as changed("intent", {"run": {"depth": 5}})
}

test_depth_that_is_not_a_count_is_denied if {
	every depth in [null, true, -1, "0", [], {}] {
		codes == ["run_too_deep"] with input as changed("intent", {"run": {"depth": depth}})
	}
}

test_blocked_tools_are_named if {
	decision := admission.decision with input as changed("intent", {"tools": ["shell", "browser", "search"]})
	decision.allow
	decision.obligations.blocked_tools == ["shell"]
}

test_warn_shrinks_to_fit if {
	terms := admission.decision.obligations with input as changed("budget", {"band": "warn"})
	terms.shrink_to_fit
	terms.max_output_tokens == 4096
	terms.priority == 10
}

test_critical_shrinks_lowers_the_cap_and_is_served_later if {
	terms := admission.decision.obligations with input as changed("budget", {"band": "critical"})
	terms.shrink_to_fit
	terms.max_output_tokens == 512
	terms.priority == 20
}

test_exhausted_is_still_admitted_with_a_fallback if {
	decision := admission.decision with input as changed("budget", {"band": "exhausted"})
	decision.allow
	decision.obligations.shrink_to_fit
	decision.obligations.fallback_models == ["sim-small"]
}

test_unknown_band_is_denied if {
	codes == ["budget_unknown"] with input as changed("budget", {"band": "fine"})
}

test_elevated_risk_samples_more if {
	terms := admission.decision.obligations with input as changed("risk", {"level": "elevated"})
	terms.sample_trace == 0.1
	terms.blocked_tools == []
}

test_high_risk_blocks_risky_tools_and_verifies if {
	risky := changed("risk", {"level": "high"})
	tools := ["browser", "search", "shell"]
	decision := admission.decision with input as patched(risky, "intent", {"tools": tools})
	decision.allow
	decision.obligations.blocked_tools == ["browser", "shell"]
	decision.obligations.verify == ["tool_calls"]
}

test_critical_risk_is_denied if {
	codes == ["risk_critical"] with input as changed("risk", {"level": "critical"})
}

test_empty_input_is_denied if {
	decision := admission.decision with input as {}
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
		decision := admission.decision with input as lacking
		decision.allow == false
		count(decision.reasons) > 0
	]
	count(refused) == 17
}

# Every pairing of these facts, good and bad: what is granted and what is denied must exclude each other.
cases := [case |
	some [team, clearance] in [["search", "internal"], ["search", "public"], ["research", "internal"]]
	some [endpoint, freeze] in [["chat", false], ["chat", true], ["embeddings", false]]
	some [tools, depth] in [[["shell"], 0], ["shell", 0], [["shell"], 9], [[], 0]]
	some [band, level] in [["critical", "high"], ["none", "high"], ["ok", "critical"]]
	case := {
		"principal": object.union(request.principal, {"team": team, "clearance": clearance}),
		"intent": object.union(request.intent, {"endpoint": endpoint, "tools": tools, "run": {"depth": depth}}),
		"budget": {"band": band},
		"risk": {"level": level},
		"env": {"freeze": freeze},
	}
]

is_empty(found) := count(found) == 0

test_granted_and_denied_exclude_each_other if {
	count(cases) == 108
	agreeing := [denied |
		some case in cases
		decision := admission.decision with input as case
		denied := admission.denied with input as case
		decision.allow == is_empty(denied)
		count(decision.reasons) == count(denied)
	]
	count(agreeing) == 108
	count([denied | some denied in agreeing; is_empty(denied)]) > 0
}
