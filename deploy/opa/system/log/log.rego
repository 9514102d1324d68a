# METADATA
# scope: package
# title: Decision log
# description: |
#   What OPA leaves out of its decision log. Inputs and answers are in Bursar's ledger, each distinct one once, and
#   Bursar's own polls, which have an empty input, are no decisions.
package system.log

mask contains "/input"

mask contains "/result"

drop if input.input == {}
