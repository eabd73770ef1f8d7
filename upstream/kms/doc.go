// Package kms is a client of Alibaba Cloud KMS Secrets Manager, and of everything that
// speaks its API over TCP or over a unix socket.
//
//	source, err := kms.NewCredentials(kms.CredentialOptions{Type: "ecs_ram_role"})
//	client, err := kms.New(kms.Options{
//		Endpoints:   []kms.Endpoint{{Region: "cn-hangzhou", Host: "kms-vpc.cn-hangzhou.aliyuncs.com"}},
//		Credentials: source,
//	})
//	value, err := client.GetSecretValue(ctx, upstream.SecretRef{SecretName: "app/db"})
//
// A [Client] is an [upstream.Manager]. Signatures and the decoding of answers are the official
// SDK's; requests, contexts, retries, failover, the call budget and the care for what may be
// printed are ours. Making a client opens no connection and needs no credential: calls fail
// with [upstream.ErrNoCredentials] until one appears. Each call is a request of its own:
// callers that ask for the same secret at the same time are joined by the cache.
//
// # A call
//
// What breaks a rule of package upstream is refused before anything is sent. Every call ends
// when its context does, and after Options.Deadline at the latest. It makes up to
// Retry.MaxAttempts attempts:
//
//   - Transport errors, timeouts, 5xx and answers that are not KMS's go to the next endpoint at
//     once, and after a wait to the first again when all were asked. Each attempt gets
//     Options.Timeout, or its share of the time left when other endpoints could still answer,
//     so that a silent one never uses up the whole deadline.
//   - Throttled calls go to the same endpoint after a wait.
//   - A refused credential is renewed once and the attempt repeated once.
//   - Every other refusal is final.
//
// Waits are exponential with full jitter, and never shorter than Retry-After,
// x-acs-retry-after or the TimeLeft of x-ratelimit-user say, up to a minute. A wait that does
// not fit into the deadline is not begun: the error comes at once, with its RetryAfter.
//
// An answer that got lost may be one to work that was done. PutSecretValue, tags and reads are
// simply repeated. CreateSecret, DeleteSecret, RestoreSecret and UpdateSecretVersionStage
// find out by reading whether it was, and report success when it was.
//
// # What is no answer
//
// A 200 that is not the value that was asked for (no data, another name, version or label) is
// InvalidAnswer: the next endpoint is asked, and the one that gave it is not left alone. What is
// not of KMS at all, such as the page of a proxy, has the code HTTP with its status. A code that
// package upstream does not know says nothing about the secret. Where the service refuses the time
// of a request, or a token that a wrong clock kept too long, the code is ClockSkew, and the
// message has the difference to the Date of the answer.
//
// # Proxies
//
// HTTPS_PROXY and NO_PROXY of the environment, also in lower case, apply to endpoints with https,
// to STS and to a credentials URI, and HTTP_PROXY to those with http and to the metadata
// service, for which NO_PROXY should name 100.100.100.200. They are read once in the life of the
// process. Loopback hosts and sockets have no proxy. Errors say where they came about: of a
// proxy, of STS and of the metadata service they name the host.
//
// # Who decides what when the service fails
//
//	attempt   judge    whether it was answered, whether the endpoint is at fault, whether the work may be done
//	call      policy   whether another attempt follows, when and on which endpoint
//	endpoint  health   rests after 1 failure, for 1s to 1m: others are asked first, then 1 call probes it
//	client    health   the breaker: rests after Breaker.Failures attempts in a row on whatever endpoint,
//	                   for Breaker.Pause to MaxPause: every call fails at once, as the last attempt
//	                   did, then 1 attempt probes
//	client    budget   how many attempts per second the service grants, and its pauses when it throttles
//	cache     …        when a secret is asked for again, whether the upstream as a whole is down, and
//	                   whether an older value is served meanwhile
//
// The two rests are one type: they double with each probe that fails, and any answer ends
// them. Where no request got through (the connection is refused, the host cannot be reached, or
// something on this host, such as a relay, hangs up) they end after half a second, and the cache
// asks every second or oftener: to try costs nothing, and values are fresh within two seconds of the return
// (TestFreshSoonAfterAReturn). Budget and breaker do not apply to a unix socket, whose other side is our own agent. A
// socket that nobody serves is tried once.
//
// # The quota
//
// The shared gateway grants 450 reads per second to a whole account in a region, and far fewer
// calls of other kinds (40 describing and listing, 10 creating and deleting). The cheapest
// question whether a value has changed is therefore GetSecretValue itself. N agents with S
// secrets each fit with a fifth to spare when cache.ttl is at least N × S / 315 seconds:
// 10m35s for 10,000 agents with 20 secrets, where the default of 5m is too short. Too short a
// TTL is not an error, only late: the service sees half again its quota and grants all of it.
//
// The agents do not know how many they are, so each adapts. Its budget starts at 5 calls per
// second and grows by half with each answer, up to Budget.PerSecond. A throttled answer
// halves it, at most once a second, and quarters it when nothing was granted in between; for
// two minutes it then grows by a fifth at a time, once a second. It never falls below one
// call in 20 seconds. A call whose turn comes too late fails at once, so that a cache serves what
// it holds instead of waiting, and with the error that made the budget small: it is the
// service, not us, that keeps the value stale. Where the service has given no reason the code is
// CallBudget: the configuration allows no more. After an outage the budget begins small again,
// the smaller the longer it was; as at a start where no request got through; and as it was when
// that was on this host.
//
// TestFleet simulates 10,000 agents with 20 secrets and a TTL of 15m: steady, they make about
// 260 calls per second; a start of all in one second is complete after less than 9 minutes,
// where the full quota would need 7m24s; an hour of outage sees about 180 probes per second,
// and all values are renewed less than 9 minutes after it.
//
// # Changes
//
// The service does not tell that a secret has changed. The KMS API of another agent does, which is
// known by a header of its answers: [Client.Watch] then keeps one request waiting there, beside
// the MaxConcurrent calls, and tells the cache which secrets to ask for again. Gateways of the service
// (*.aliyuncs.com) are never asked. While the watch is broken, which status and metrics say, values are as fresh as
// cache.ttl makes them; afterwards what was missed is told. After a restart of the other agent,
// and where another endpoint has taken over, that is everything.
//
// # Credentials
//
// A [CredentialSource] asks credentials-go for a consistent set of key, secret and token, once
// a minute and in the background, which renews temporary credentials up to three minutes
// before they end. Calls take what is in memory. A call waits for the source only when there
// is nothing yet, or when nothing was asked for two minutes. A source that fails is asked
// again every few seconds, with everything it remembered thrown away; what is held is used
// until the service refuses it. Files that change are noticed within two seconds of the next
// call. The library does not tell when a credential ends. It is known all the same of a role
// that is assumed by ram_role_arn or oidc_role_arn, whose session lasts as long as we asked for,
// and shown in [CredentialStatus]; of other sources nothing is shown.
//
// Which STS a type asks is decided here alone, so that every failure names it, with the code of its
// answer. The default chain has the members of the library's, in its order, and one rule more: where
// STS is down or refuses a role, or a pod has variables for one, it does not go on to the next
// identity, such as the role of the node, which may read other secrets than the pod.
//
// # What is never shown
//
// No error, log line, observation, status or URL holds a value, a credential or a URL with
// parameters. Texts of the service are passed on unless they quote what was sent; texts of
// transport and credential libraries are never passed on, only recognised.
//
// # Design notes
//
// The SDK's client knows no contexts, races with itself when shared, sends parameters in the
// URL, and prints requests and answers when DEBUG=sdk is set. So only its signature and its
// decoder are used, which do none of that. What is signed as parameters of a query travels in
// the form: a V1 signature covers query and form as one sorted list, so it stays valid, and the
// service takes a form from other clients too.
//
// credentials-go prints the token of the metadata service with DEBUG=credential, the output
// of programs in profiles of mode External when it is malformed, and follows profiles that
// name each other until the stack is gone. There is no way to make it stop, so a source
// refuses to be opened in these three cases and says why.
//
// Each endpoint has a connection pool of its own, not the client as a whole: a private
// authority is then trusted for its own host and for no other.
//
// The budget is not a queue of reservations: a place promised at one rate would be kept after
// the rate was cut, and a whole fleet would go on at the speed it started with.
package kms
