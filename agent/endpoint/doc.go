// Package endpoint is the localhost HTTP endpoint: it hands secret values from a cache to the
// applications of one host, and to nobody else.
//
//	srv, err := endpoint.New(cache, endpoint.Options{Callers: []endpoint.Caller{endpoint.DefaultCaller(token)}})
//	ln, err := listen.Open(listen.TCPOptions{Address: "127.0.0.1:2025"})
//	go srv.Serve(ln)
//	…
//	err = srv.Shutdown(ctx)
//
// # Requests
//
//	GET  /v1/{name}                            the value; the name is percent-decoded once, so a%2Fb and a/b are the same
//	GET  /secretsmanager/get?secretId={name}   the same, as the KMS and AWS agents spell it
//	     versionId=, versionStage=             which version; {name} may also be name:Label
//	     refreshNow=true                       ask the backend now
//	     format=kms|aws|vault|raw, field=      the shape of the answer, see [Format]
//	     wait=30s                              with If-None-Match: answer when the value changes, 304 when the time is over
//	GET  /secretsmanager/batch?secretId=a&secretId=b:ACSPrevious
//	                                           several values of one moment: {"SecretValues":[…],"Errors":[…]}
//	POST /secretsmanager/report?secretId=      "this value was refused": one rate-limited refresh, answers with the current version
//	POST /secretsmanager/changed?secretId=     "this secret was changed in the backend": the next lookup asks again
//	GET  /systemsmanager/parameters/get?name=  a parameter of the Lambda extension, see below
//	GET  /live, /ready                         health; no token needed
//	GET  /ping                                 health as the AWS agent has it, whoever asks, from where, and with what parameters
//	GET  /metrics, /status                     numbers and state, never values
//	GET  /status/versions?secretId=            versions and labels of one secret, where the backend tells them for nothing
//
// Browsers get a page at /status, with these below it:
//
//	GET  /status/page.css, …                   what it is made of; no token needed
//	POST /status/link                          a one-time link for the caller: {"Link","ExpiresAt"}
//	GET  /status/open?code=                    begins a session for the visitor that follows the link
//	POST /status/sign-in, /status/sign-out     begins one for a visitor that types a token (token=, as a form), and ends it
//
// A parameter that is unknown, empty or given twice is an error that names it, see below for
// applications of the AWS agent. In a query '+'
// stands for itself, since it belongs to the alphabet of names; only in field= it is a space,
// as form encoders write it.
//
// A traceparent header (W3C Trace Context) is followed: the trace is in the log and audit lines
// of the request and of the call to the backend that it causes. One that is not valid is
// ignored. tracestate is accepted and not used; a client that sends no trace gets none.
//
// Every answer carries X-Request-Id. A value carries ETag, Age, X-Cache (hit, miss or stale)
// and, when it is stale, X-Cache-Reason. The RequestId inside a kms body is that of the read
// from the backend that produced the value.
//
// # Families
//
// Applications that were written for another agent ask as they did there. Which family a request
// is of shows in its headers and its raw path, before anything is refused:
//
//	X-Aws-Parameters-Secrets-Token is there      the AWS agent's, whatever the path
//	a path of Vault, see below                   Vault's, where there are [Options.VaultMounts]
//	everything else                              the KMS Agent's
//
// The family decides what path and parameters mean, and the shape of answers and errors where no
// format= does: that is the shape alone. The KMS Agent's family has the shape of [Caller.Format],
// or else of [Options.Format]; the answers of the KMS Agent itself have one shape for all its
// applications, which nothing in their requests tells. The other token headers decide nothing,
// because applications of all three families send them: one of the AWS agent that sends
// X-Vault-Token needs the format aws. Two tokens that differ are refused in all of them. Rights,
// audit and the guard are the same for all.
//
// # Vault
//
// For every mount, say secret, and always below /v1/:
//
//	GET  /v1/secret/data/{name}                KV version 2: the value in the shape of [FormatVault]; data that is no JSON object is {"value": …}
//	     version=7                             the version whose id is 7, or else v7; 0, or none: the current one
//	GET  /v1/secret/metadata/{name}            versions with a number, where the backend tells them for nothing
//	LIST /v1/secret/metadata/{path}            of the declared secrets those that the caller may read, with [Caller.List]; else 404
//	GET  …?list=true                           the same
//	GET  /v1/kv/{name}, LIST /v1/kv/{path}     KV version 1, for a mount of version 1
//
//	GET  /v1/auth/token/lookup-self            a token that never ends
//	PUT, POST /v1/auth/token/renew-self        the same token, not renewable
//	PUT, POST /v1/auth/token/revoke-self       403: the token is not the client's to revoke, and to say so would be untrue
//	GET  /v1/sys/internal/ui/mounts/{path}     the mount that the path is in; 403: none
//	GET, HEAD /v1/sys/health                   200, without a token
//	GET  /v1/sys/seal-status, /v1/sys/init     the same
//
// The answers of the second group are constant and ask no backend; what they are given as
// parameters or body does not matter. Errors have no member but "errors", since clients take
// others for data, with Vault's own word first; of a secret or version that is not there it is
// empty. X-Vault-Namespace and X-Vault-Request are accepted and mean nothing: all namespaces, and
// all mounts, show the same secrets. X-Vault-Wrap-TTL is refused. Parameters of a read stay
// strict, though Vault ignores what it does not know: a misspelt version= must not become the
// current one. wait=, field= and the others of the KMS Agent's family work as well.
//
// A mount takes paths from names. The secret secret/data/x is not at /v1/secret/data/x any more,
// but still at ?secretId=secret/data/x and at /v1/secret%2Fdata%2Fx: paths are matched as they were
// sent, and an encoded slash is part of a name. [Options.Hides] tells, and "secretagent check" warns of
// declared names. Applications of the AWS agent, which know no mounts, find it at its path. Other
// names below a mount, such as secret/x, remain names of the KMS Agent's family, but answer LIST
// with 404, which is what clients of KV version 1 expect there.
//
// Health says that the agent lives, and is not 503 when a secret is missing: clients take that for
// a sealed Vault, and none of their secrets would be read.
//
// # The AWS agent
//
// Values and errors are those of [FormatAWS]. An id may be an ARN of AWS Secrets Manager, also in
// the path: the name in it counts, without the dash and six characters at its end. Of a parameter
// that is repeated the last counts, one that is empty is not given, and a '&' too many does not
// matter. roleArn is refused: there is no role to assume. What the guard refuses stays refused:
// forwarding headers of all kinds, foreign hosts, pages, and two tokens that differ, which the AWS
// agent lets pass.
//
// Applications of the Lambda extension ask in the same way, and for parameters of Parameter Store
// at /systemsmanager/parameters/get, by name=, version= and label=. They get the secret of that name, without
// the slash that it begins with: the parameter /app/db is the secret app/db. It is a SecureString;
// its Version is the number of version ids such as 7 or v7, otherwise 0; a binary one has its
// base64. withDecryption=true may be left out, as for a String; withDecryption=false is refused,
// for who says so wants no plain text.
//
// # Errors
//
// Errors are {"Code","Message","RequestId"} in the shape of KMS, with "request_id" and "errors"
// for clients of Vault that asked at a path which is none of Vault's: without these, Go's client
// takes an error for a secret. In the shapes of the AWS agent and of Vault they have the status
// that their clients expect. What the backend answered keeps its KMS code and status; what this
// package refuses by itself has a code of its own, see refusal.go and "secretagent help errors",
// which a test compares. A parameter that is wrong or missing is 400 InvalidParameter or
// MissingParameter; a request that carries Expect is 417, the one answer without JSON.
//
// # Who may ask
//
// Every request but /live and /ready belongs to a [Caller]. The checks run in one fixed order,
// see guard.go. Wrong tokens get no artificial delay: a sleep would tie up the connection it is
// meant to protect. Instead the connection is closed, so that every guess costs the guesser a
// new one, and connections that never presented a valid token are the first to go when slots
// run out and they have more than a sixteenth of them. A guess costs us one SHA-256.
//
// # The status page
//
// A browser has no token, and must not get one. It signs in with a one-time link, or with a
// token in a form, and gets a session: a random cookie that the server knows by its hash. The
// session is a loan of its caller: it counts for GET /status and /status/versions and for
// nothing else, with what the caller may read at the time of each request, and ends with the
// token that it was made with, 30 minutes after its last use, after 12 hours, and with the
// process. A caller has at most 8 sessions and 4 unused links; the oldest goes.
//
// The guard lets a browser ask for the page and its parts from the page itself, or when the
// address was typed. The two forms must say that they come from it, by Sec-Fetch-Site or
// Origin: no other page can sign a visitor in, or out. The page loads nothing from elsewhere,
// runs no inline script, and makes markup of no text ([Options.StatusPage]).
//
// Cookies know hosts and paths, not ports. Another server under the same name, say on another
// port of 127.0.0.1, sees the cookies of browsers that visit it below /status, and can look at
// the state with one until it ends. It finds no value there.
//
// # Limits
//
// Everything a client can grow is bounded by [Options]. When MaxConnections are open, package
// slots decides who makes room for a newcomer: a connection that never presented a valid token,
// or one of the caller that has most, stuck ones first. Connections at work are not closed for a
// newcomer of whom nothing is known. When all are at work, he is let in for one request, 16 at a
// time: /live and /ready are answered, and a caller who has less than others takes the place of
// one that has most, at work or not. The others are refused. A caller's users (uids of a unix
// socket) share what it has in the same way, and so do callers the places of waiting clients.
//
// Clients that wait (wait=) are not counted as connections but as waiters. A waiting client
// costs its socket, its request bytes and a small goroutine; the buffers are freed.
//
// All methods are safe for concurrent use.
//
// # Design notes
//
// A hit passes, in this order: conn.Read, fasthttp's parser, handle, dispatch, familyOf, guard,
// parse, get, Secrets.Peek, answer, and fasthttp's writer. It allocates nothing: the answer is
// prepared, the token is found by its SHA-256 in one map, and parameters are decoded into a
// buffer of the connection. Remembering the last request of a connection, to skip the parser and
// the guard when it repeats, was tried: it pays only for hundreds of busy connections.
//
// The prepared answer is kept with the value in the cache. That costs the size of the answer and
// some 250 bytes for each form that was asked for since the value was last confirmed. The cache
// counts it and drops it when nobody asks for a while.
//
// Deadlines come from a sweep, not from a timer per request, see package slots. Setting read,
// write and idle deadlines costs three timer updates per request, a tenth of the whole. In return
// a timeout fires up to two sweeps late, which is two seconds at most.
//
// For the same reason one hit in 64 of a connection is timed, and who asked last is noted with a
// clock that the sweep sets; reading the clock again for all of them would cost more than finding
// the value. The Age of a value is that of the cache, which no setting of the clock changes. Answers carry no Date and no Server header; they help
// nobody on a loopback.
//
// A waiting request is parked by hijacking the connection and replayed when it is woken: it
// passes the whole guard again, so a token revoked meanwhile gets nothing. The alternative, to
// park inside the handler, holds about 20 KiB of buffers per client and cannot see a client
// go away.
//
// An ETag is a keyed hash whose key is drawn at start. A plain hash of the value would let
// anyone who sees it confirm guesses. Tags therefore do not survive a restart, after which a
// waiting client gets its answer at once.
package endpoint
