package bursar.tools_test

import rego.v1

import data.bursar.tools

call := {
	"principal": {"org": "acme", "team": "search", "app": "web", "roles": ["dev"], "clearance": "internal"},
	"tool": {"name": "search", "server": "", "kind": "function"},
	"phase": "called",
	"risk": {"level": "normal"},
	"env": {"name": "dev", "freeze": false},
}

of(tool) := object.union(object.remove(call, ["tool"]), {"tool": tool})

named(name) := of({"name": name, "server": "", "kind": "function"})

served(server, name) := of({"name": name, "server": server, "kind": "mcp"})

at(level, asked) := object.union(asked, {"risk": {"level": level}})

# One `with` for all tests: the embedded engine compiles the policy anew for each that it meets.
decided(asked) := decision if {
	decision := tools.decision with input as asked
}

# The decision over the shipped tables but for those given.
decided_over(tables, asked) := decision if {
	registry := object.get(tables, "registry", data.bursar.tools.registry)
	tiers := object.get(tables, "tiers", data.bursar.tools.tiers)
	unregistered := object.get(tables, "unregistered", data.bursar.tools.unregistered)
	decision := tools.decision with input as asked
		with data.bursar.tools.registry as registry
		with data.bursar.tools.tiers as tiers
		with data.bursar.tools.unregistered as unregistered
}

checks(asked) := decision.obligations.verify if {
	decision := decided(asked)
	decision.allow
}

codes_of(decision) := [reason.code | some reason in decision.reasons]

codes(asked) := codes_of(decided(asked))

test_registered_tool_may_be_called if {
	decided(call) == {"allow": true, "reasons": [], "obligations": {"verify": []}}
}

test_tool_of_a_server_is_registered_under_both_names if {
	codes(served("tickets", "read")) == []
	codes(served("tickets", "delete")) == ["tool_not_registered"]
}

test_function_cannot_pass_for_a_tool_of_a_server if {
	"tool_malformed" in codes(named("tickets/read"))
	"tool_malformed" in codes(of({"name": "read", "server": "tickets", "kind": "function"}))
	"tool_malformed" in codes(served("", "read"))
	"tool_malformed" in codes(served("tickets/read", "all"))
}

test_malformed_tools_are_denied if {
	every tool in [{}, {"name": 5, "server": "", "kind": "function"}, {"name": "search", "server": "", "kind": "shell"}] {
		"tool_malformed" in codes(of(tool))
	}
	"tool_malformed" in codes(named(""))
}

test_tool_that_nobody_registered_is_denied if {
	codes(named("gizmo")) == ["tool_not_registered"]
}

test_unregistered_tools_can_be_given_a_tier if {
	codes_of(decided_over({"unregistered": "low"}, named("gizmo"))) == []
	codes_of(decided_over({"unregistered": "high"}, at("high", named("gizmo")))) == ["risk_too_high"]
}

test_tool_that_the_row_blocks_is_denied if {
	codes(named("shell")) == ["tool_not_offered"]
}

test_unknown_caller_is_denied if {
	"tool_not_offered" in codes(object.union(call, {"principal": {"org": "evil", "team": "x", "app": "y"}}))
}

test_clearance_too_low_for_the_tier_is_denied if {
	public := object.union(call, {"principal": object.union(call.principal, {"clearance": "public"})})
	codes(public) == []
	browsing := object.union(public, {"tool": {"name": "browser", "server": "", "kind": "function"}})
	codes(browsing) == ["clearance_too_low"]
}

test_high_risk_closes_high_tools if {
	codes(at("elevated", named("browser"))) == []
	codes(at("high", named("browser"))) == ["risk_too_high"]
	codes(at("high", named("search"))) == []
	codes(at("critical", named("search"))) == ["risk_too_high"]
}

test_checks_rise_with_risk_and_tier if {
	checks(at("normal", named("browser"))) == []
	checks(at("elevated", named("browser"))) == ["tool_calls"]
	checks(at("elevated", named("search"))) == []
	checks(at("high", named("search"))) == ["tool_calls"]
	checks(at("high", served("tickets", "close"))) == ["human", "tool_calls"]
}

test_offering_a_tool_takes_no_checks if {
	offered := object.union(served("tickets", "close"), {"phase": "offered"})
	decided(offered) == {"allow": true, "reasons": [], "obligations": {"verify": []}}
}

test_other_phases_are_denied if {
	codes(object.union(call, {"phase": "thought of"})) == ["phase_unknown"]
}

frozen(asked) := object.union(asked, {"env": {"name": "dev", "freeze": true}})

test_freeze_closes_high_tools if {
	codes(frozen(call)) == []
	codes(frozen(named("browser"))) == ["frozen"]
}

test_freeze_spares_an_exempt_app if {
	exempt := object.union(frozen(named("browser")), {"principal": object.union(call.principal, {"app": "indexer"})})
	codes(exempt) == []
}

facts := {
	"principal": {"org", "team", "app", "clearance"},
	"tool": {"name", "server", "kind"},
	"risk": {"level"},
	"env": {"freeze"},
}

deprived contains object.remove(call, [section]) if some section in {"principal", "tool", "phase", "risk", "env"}

deprived contains lacking if {
	some section, names in facts
	some name in names
	left := {section: object.remove(call[section], [name])}
	lacking := object.union(object.remove(call, [section]), left)
}

test_each_missing_fact_denies if {
	count(deprived) == 14
	refused := [decision |
		some lacking in deprived
		decision := decided(lacking)
		decision.allow == false
		count(decision.reasons) > 0
	]
	count(refused) == 14
}

denied_over(tables) if {
	decision := decided_over(tables, call)
	decision.allow == false
	count(decision.reasons) > 0
}

test_wrong_registry_denies if {
	every registry in [5, [], {"search": 5}, {"search": {}}, {"search": {"tier": 5}}, {"search": {"tier": "huge"}}] {
		denied_over({"registry": registry, "unregistered": "low"})
	}
}

test_wrong_tiers_deny if {
	every tiers in [5, [], {"low": 5}, {"low": {"normal": 5}}, {"low": {"normal": {"internal": "yes"}}}] {
		denied_over({"tiers": tiers})
	}
}

test_wrong_checks_deny if {
	denied_over({"registry": {"search": {"tier": "low", "verify": "human"}}})
}

test_every_tool_has_a_tier_of_the_table if {
	every name, _ in data.bursar.tools.registry {
		is_object(data.bursar.tools.tiers[tools.tool_tier(name)])
	}
}
