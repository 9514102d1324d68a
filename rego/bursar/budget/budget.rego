# METADATA
# scope: package
# title: Budget
# description: |
#   `terms[name][band]` are the obligations of a request while the worst of its budgets is in that band; offers of
#   package admission name them, and it looks them up by key. The rules are for gates, which ask for headroom: what
#   budget, risk and error budget leave, each from 0 to 1000 thousandths.
# schemas:
#   - input: schema.input.headroom
package bursar.budget

import rego.v1

# METADATA
# title: Headroom short
# description: |
#   The reasons for which the headroom is too small, given the least of each kind in thousandths. What is unknown,
#   in the input or in the table, is too small.
headroom_short(least) := [{"code": shortage.code, "message": shortage.message} |
	some shortage in _shortages
	not _headroom_enough(shortage.kind, least)
]

# METADATA
# title: At least
# description: |
#   Whether a number is no less than another. Rego compares values of different types too, and finds every text
#   greater than every number.
at_least(number, least) if {
	is_number(number)
	is_number(least)
	number >= least
}

_headroom_enough(kind, least) if at_least(input.headroom[kind], least[kind])

_shortages := [
	{
		"kind": "budget",
		"code": "headroom_budget_low",
		"message": "The budget headroom is unknown or less than is needed here.",
	},
	{
		"kind": "risk",
		"code": "headroom_risk_low",
		"message": "The risk headroom is unknown or less than is needed here.",
	},
	{
		"kind": "error_budget",
		"code": "headroom_error_budget_low",
		"message": "The error budget's headroom is unknown or less than is needed here.",
	},
	{
		"kind": "overall",
		"code": "headroom_overall_low",
		"message": "The overall headroom is unknown or less than is needed here.",
	},
]
