# METADATA
# scope: package
# title: Tools
# description: |
#   Decides each tool that is offered to a model or called by one. `registry` gives each tool a tier and an owner,
#   under its name for a function and under `server/name` for a tool of an MCP server.
#   `tiers[tier][level][clearance]` says who may use it while the risk is at that level. `unregistered` is `deny`,
#   or the tier of every tool without an entry.
# schemas:
#   - input: schema.input.tools
package bursar.tools

import rego.v1

import data.bursar.admission
import data.bursar.risk

# METADATA
# title: Decision
# description: |
#   Whether a tool may be used, and which checks a call must pass first. To be offered a tool takes the same as to
#   call it, and no checks.
# scope: document
# entrypoint: true
decision := {"allow": true, "reasons": [], "obligations": {"verify": _verify}} if {
	count(denied) == 0
} else := {"allow": false, "reasons": reasons, "obligations": {}}

# METADATA
# title: Reasons
# description: Why a tool is refused, the first cause first.
reasons := [{"code": code, "message": denied[code]} |
	some code in [
		"tool_malformed",
		"phase_unknown",
		"tool_not_offered",
		"tool_not_registered",
		"risk_too_high",
		"clearance_too_low",
		"frozen",
		"tables_malformed",
	]
]

# METADATA
# title: Denied
# description: A message for each code that denies. Each negates a positive fact, so that missing input denies.
# scope: document
denied["tool_malformed"] := "The tool has no name, or its kind and server do not go together." if not _key

denied["phase_unknown"] := "The tool is neither offered nor called." if not _phase_known

denied["tool_not_offered"] := "The tool is blocked for this app, or the caller is unknown." if not _offered

denied["tool_not_registered"] := "The tool is not registered." if {
	_key
	not _registered
}

denied["risk_too_high"] := "The risk level is unknown or too high for a tool of this tier." if {
	_registered
	not _level_open
}

denied["clearance_too_low"] := "The caller's clearance is too low for a tool of this tier." if {
	_level_open
	not _cleared
}

denied["frozen"] := "The environment is frozen and tools of this tier are closed in a freeze." if not _open

denied["tables_malformed"] := "A table of the policy has not the form that its schema asks for." if {
	_level_open
	not _checks
}

# METADATA
# title: Tool tier
# description: The tier of a tool, or what `unregistered` says for one that has no entry.
# scope: document
tool_tier(tool) := tier if {
	entry := _entry(tool)
	tier := entry.tier
} else := data.bursar.tools.unregistered if {
	_entry(tool) == null
}

# METADATA
# title: Tool cleared
# description: Whether the caller may use a tool of this tier at this risk level.
tool_cleared(tool) if {
	data.bursar.tools.tiers[tool_tier(tool)][input.risk.level][input.principal.clearance] == true
}

# METADATA
# title: Checks
# description: The checks that a call of a tool must pass - the tool's own, and those of its tier at this risk level.
checks(tool) := array.concat(_own_checks(tool), risk.tool_checks(tool_tier(tool)))

_own_checks(tool) := own if {
	entry := _entry(tool)
	own := entry.verify
	is_array(own)
} else := [] if {
	_entry(tool) == null
} else := [] if {
	entry := _entry(tool)
	is_object(entry)
	object.get(entry, "verify", null) == null
}

# Null for a tool without an entry. The embedded engine tries every key where a function's argument is looked up in
# brackets, and only finds the key with `object.get`.
_entry(tool) := object.get(registry, tool, null) if {
	is_string(tool)
	registry := data.bursar.tools.registry
	is_object(registry)
}

_key := name if {
	input.tool.kind == "function"
	input.tool.server == ""
	name := input.tool.name
	is_string(name)
	name != ""
	not contains(name, "/")
} else := concat("/", [server, name]) if {
	input.tool.kind == "mcp"
	server := input.tool.server
	name := input.tool.name
	is_string(server)
	is_string(name)
	server != ""
	name != ""
	not contains(server, "/")
}

_offered if admission.tool_offered(_key)

_registered if is_object(data.bursar.tools.tiers[tool_tier(_key)])

_level_open if is_object(data.bursar.tools.tiers[tool_tier(_key)][input.risk.level])

_cleared if tool_cleared(_key)

_checks := checks(_key)

_phase_known if input.phase in ["offered", "called"]

_open if admission.open_for_work

_open if {
	input.env.freeze == true
	data.bursar.tools.open_in_freeze[tool_tier(_key)] == true
}

_verify := [] if {
	input.phase == "offered"
} else := risk.distinct(_checks)
