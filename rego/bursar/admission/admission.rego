# METADATA
# scope: package
# title: Admission
# description: |
#   Decides each request from the tables of data.json, every lookup by key. `rows[org][team][app]` says which offer of
#   each model an app has; `*` stands for any, the most specific row answers alone, and the default row offers nothing.
#   `offers[name]` says where a model may be used, by which clearances, and on what terms in each budget band. Bands
#   degrade and never refuse: policy decides, the book counts.
package bursar.admission

import rego.v1

# METADATA
# scope: document
# title: Decision
# description: Whether a request is admitted, why it is not, and what the gateway must do with it when it is.
# entrypoint: true
decision := {"allow": true, "reasons": [], "obligations": granted} if {
	granted
	not restricted
} else := {"allow": true, "reasons": [], "obligations": object.union(granted, restrictions)} if {
	granted
} else := {"allow": false, "reasons": reasons, "obligations": {}}

# METADATA
# title: Granted
# description: |
#   The terms of an admitted request, defined only when every fact below holds. It is the hot path: the facts that
#   `denied` explains one by one stand here in one body, which is faster; a new fact goes
#   into both, and the tests hold the two together.
granted := terms if {
	offer := data.bursar.admission.offers[row.offers[input.intent.model]]
	offer.endpoints[input.intent.endpoint] == true
	offer.clearances[input.principal.clearance] == true
	terms := offer.terms[input.budget.band]
	depth := input.intent.run.depth
	depth >= 0
	depth <= row.run_depth_max
	is_array(input.intent.tools)
	open_for_work
	risk
}

# METADATA
# title: Reasons
# description: Why a request is refused, the first cause first.
reasons := [{"code": code, "message": denied[code]} |
	some code in [
		"model_not_offered",
		"endpoint_not_allowed",
		"clearance_too_low",
		"frozen",
		"run_too_deep",
		"risk_critical",
		"tools_unknown",
		"budget_unknown",
	]
]

# METADATA
# scope: document
# title: Denied
# description: A message for each code that denies. Each negates a positive fact, so that missing input denies.
denied["model_not_offered"] := "The model is not offered to this app." if not offer

denied["endpoint_not_allowed"] := "The model is not offered to this app on this endpoint." if {
	offer
	not endpoint_allowed
}

denied["clearance_too_low"] := "The caller's clearance is too low for the model." if {
	offer
	not clearance_sufficient
}

denied["frozen"] := "The environment is frozen and this app is not exempt." if not open_for_work

denied["run_too_deep"] := "The run is nested deeper than this app may go, or its depth is unknown." if {
	not depth_within_limit
}

denied["risk_critical"] := "The risk level is critical or unknown." if not risk

denied["tools_unknown"] := "The tools of the request are not a list." if not tools_known

denied["budget_unknown"] := "The budget band is unknown." if {
	offer
	not band_known
}

offer := data.bursar.admission.offers[row.offers[input.intent.model]]

endpoint_allowed if offer.endpoints[input.intent.endpoint] == true

clearance_sufficient if offer.clearances[input.principal.clearance] == true

band_known if offer.terms[input.budget.band]

depth_within_limit if {
	input.intent.run.depth >= 0
	input.intent.run.depth <= row.run_depth_max
}

tools_known if is_array(input.intent.tools)

open_for_work if input.env.freeze == false

open_for_work if row.freeze_exempt == true

risk := data.bursar.admission.risks[input.risk.level]

row := found if {
	found := team[input.principal.app]
} else := found if {
	is_string(input.principal.app)
	found := team["*"]
}

team := found if {
	found := data.bursar.admission.rows[input.principal.org][input.principal.team]
} else := found if {
	is_string(input.principal.team)
	found := data.bursar.admission.rows[input.principal.org]["*"]
} else := found if {
	is_string(input.principal.team)
	is_string(input.principal.org)
	found := data.bursar.admission.rows["*"]["*"]
}

restricted if input.intent.tools != []

restricted if input.risk.level != "normal"

# METADATA
# title: Restrictions
# description: What the tools asked for and the risk level add to the terms.
restrictions := object.union(risk.obligations, {"blocked_tools": blocked_tools})

blocked_tools := [tool | some tool in input.intent.tools; tool_blocked(tool)]

tool_blocked(tool) if row.blocked_tools[tool] == true

tool_blocked(tool) if risk.blocked_tools[tool] == true
