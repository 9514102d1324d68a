# METADATA
# scope: package
# title: Authorization
# description: |
#   Who may ask OPA what. Bursar, known by the token in BURSAR_OPA_TOKEN, asks for decisions and for the state of the
#   bundle; anybody may ask whether OPA is well. Nobody changes policies or data: they come with the signed bundle.
package system.authz

# METADATA
# title: Allow
# description: Whether a request to OPA's API is answered.
# entrypoint: true
default allow := false

allow if {
	input.method == "GET"
	input.path in [["health"], ["metrics"]]
}

allow if {
	crypto.hmac.equal(input.identity, opa.runtime().env.BURSAR_OPA_TOKEN)
	opa.runtime().env.BURSAR_OPA_TOKEN != ""
	_asked_for
}

_asked_for if {
	input.method == "POST"
	array.slice(input.path, 0, 3) == ["v1", "data", "bursar"]
}

_asked_for if {
	input.method == "GET"
	input.path in [["v1", "status"], ["v1", "config"]]
}
