# METADATA
# scope: package
# title: Admission
# description: |
#   Decides each request from tables, every lookup by key. `rows[org][team][app]` says which offer of each model an
#   app has; `*` stands for any, the most specific row answers alone, and the default row offers nothing.
#   `offers[name]` says on which endpoints a model may be used and names its terms, which package budget holds for
#   each budget band. Package risk says which clearances a model's tier needs at each risk level, and package tools
#   which tools may be used. Bands degrade and never refuse: policy decides, the book counts.
# schemas:
#   - input: schema.input.admission
package bursar.admission

import rego.v1

import data.bursar.risk
import data.bursar.tools

# METADATA
# title: Decision
# description: |
#   Whether a request is admitted, why it is not, and what the gateway must do with it when it is. The normal level
#   adds nothing and a request without tools has none to take out, so that the first case, the usual one, looks
#   nothing up.
# scope: document
# entrypoint: true
decision := {"allow": true, "reasons": [], "obligations": terms} if {
	terms := granted
	input.risk.level == "normal"
	input.intent.tools == []
} else := {"allow": true, "reasons": [], "obligations": restrained} if {
	restrained
} else := {"allow": false, "reasons": reasons, "obligations": {}}

# METADATA
# title: Granted
# description: |
#   The terms of a request before its tools and the risk level restrain them, defined only when every fact below
#   holds. It is the hot path: the facts that `denied` explains one by one stand here in one body, which is faster;
#   a new fact goes into both, and the tests hold the two together.
granted := terms if {
	offer := data.bursar.admission.offers[_row.offers[input.intent.model]]
	offer.endpoints[input.intent.endpoint] == true
	tier := data.bursar.risk.models[input.intent.model].tier
	data.bursar.risk.model_tiers[tier][input.risk.level][input.principal.clearance] == true
	terms := data.bursar.budget.terms[offer.terms][input.budget.band]
	depth := input.intent.run.depth
	depth >= 0
	depth <= _row.run_depth_max
	is_number(_row.run_depth_max)
	open_for_work
}

# METADATA
# title: Restrained
# description: |
#   The terms with what the risk level and the tools asked for add: fewer tools, more checks, a lower cap.
#   Undefined, and so denied, where a table has not the form that its schema asks for.
restrained := object.union_n([granted, risk.obligations, risk.output_cap(granted), chosen]) if {
	is_array(input.intent.tools)
	offered := object.get(granted, "verify", [])
	allowed := {tool | some tool in input.intent.tools; tool_allowed(tool)}
	called := {check | some tool in allowed; some check in tools.checks(tool)}
	chosen := {
		"blocked_tools": [tool | some tool in input.intent.tools; not tool in allowed],
		"verify": risk.distinct(array.concat(array.concat(offered, risk.verify), [check | some check in called])),
	}
}

# METADATA
# title: Reasons
# description: Why a request is refused, the first cause first.
reasons := [{"code": code, "message": denied[code]} |
	some code in [
		"model_not_offered",
		"endpoint_not_allowed",
		"model_not_registered",
		"risk_critical",
		"risk_too_high",
		"clearance_too_low",
		"frozen",
		"run_too_deep",
		"tools_unknown",
		"budget_unknown",
		"tables_malformed",
	]
]

# METADATA
# title: Denied
# description: A message for each code that denies. Each negates a positive fact, so that missing input denies.
# scope: document
denied["model_not_offered"] := "The model is not offered to this app." if not _offer

denied["endpoint_not_allowed"] := "The model is not offered to this app on this endpoint." if {
	_offer
	not _endpoint_allowed
}

denied["model_not_registered"] := "The model is offered, but has no tier in the table of models." if {
	_offer
	not _model_registered
}

denied["risk_critical"] := "The risk level is critical or unknown." if not risk.level_known

denied["risk_too_high"] := "The risk level is too high for a model of this tier." if {
	risk.level_known
	_model_registered
	not _model_open
}

denied["clearance_too_low"] := "The caller's clearance is too low for the model." if {
	_offer
	_model_open
	not _model_cleared
}

denied["frozen"] := "The environment is frozen and this app is not exempt." if not open_for_work

denied["run_too_deep"] := "The run is nested deeper than this app may go, or its depth is unknown." if {
	not _depth_within_limit
}

denied["tools_unknown"] := "The tools of the request are not a list." if not _tools_known

denied["budget_unknown"] := "The budget band is unknown." if {
	_offer
	not _band_known
}

denied["tables_malformed"] := "A table of the policy has not the form that its schema asks for." if {
	granted
	_tools_known
	not restrained
}

# METADATA
# title: Open for work
# description: Whether a freeze of the environment leaves this app alone.
# scope: document
open_for_work if input.env.freeze == false

open_for_work if _row.freeze_exempt == true

# METADATA
# title: Tool offered
# description: Whether the row of the caller leaves a tool in; `*` in it stands for every tool.
tool_offered(tool) if {
	blocked := _row.blocked_tools
	is_object(blocked)
	object.get(blocked, "*", false) == false
	object.get(blocked, tool, false) == false
}

# METADATA
# title: Tool allowed
# description: Whether a tool asked for stays in the request.
tool_allowed(tool) if {
	tool_offered(tool)
	tools.tool_cleared(tool)
}

_offer := data.bursar.admission.offers[_row.offers[input.intent.model]]

_endpoint_allowed if _offer.endpoints[input.intent.endpoint] == true

_model_registered if is_string(risk.model_tier(input.intent.model))

_model_open if risk.model_open(input.intent.model)

_model_cleared if risk.model_cleared(input.intent.model)

_tools_known if is_array(input.intent.tools)

_band_known if data.bursar.budget.terms[_offer.terms][input.budget.band]

_depth_within_limit if {
	is_number(_row.run_depth_max)
	input.intent.run.depth >= 0
	input.intent.run.depth <= _row.run_depth_max
}

_row := found if {
	found := _team[input.principal.app]
} else := found if {
	is_string(input.principal.app)
	found := _team["*"]
}

_team := found if {
	found := data.bursar.admission.rows[input.principal.org][input.principal.team]
} else := found if {
	is_string(input.principal.team)
	found := data.bursar.admission.rows[input.principal.org]["*"]
} else := found if {
	is_string(input.principal.team)
	is_string(input.principal.org)
	found := data.bursar.admission.rows["*"]["*"]
}
