// Package kmsserver serves an [upstream.Manager] over the KMS API of Alibaba Cloud (product
// Kms, version 2016-01-20, RPC style), so that its official SDKs and command line work on it
// unchanged.
//
//	server, err := kmsserver.New(store, kmsserver.Options{AccessKeys: keys, Logger: logger})
//	socket, err := listen.Open(listen.UnixOptions{Path: "run/kms.sock"})
//	go server.Serve(socket, kmsserver.Trusted)
//	public, err := listen.Open(listen.TCPOptions{Address: "127.0.0.1:2026"})
//	go server.Serve(public, kmsserver.Signed)
//	…
//	err = server.Shutdown(ctx)
//
// # Requests
//
// GET and POST on / are answered. Parameters are merged from the query, a form body and, for
// requests signed in their headers, a JSON body. A name that occurs twice is refused. Every
// parameter is text and must be UTF-8.
//
// A parameter that an action does not know is refused where the answer holds a secret, that is by
// GetSecretValue, also within BatchGetSecretValue, and by GetRandomPassword: it may ask for the
// secret in another form, as Recipient asks for one that only an enclave can read, or be a misspelt
// VersionId. All other actions ignore it, as the service does. One that is empty asks for nothing.
//
// A signed listener verifies signatures V1 (HMAC-SHA1 in the parameters) and V3
// (ACS3-HMAC-SHA256 in the headers): known key, timestamp within 15 minutes either way,
// signature, security token, nonce not used before, in this order. Then the action must
// match the key's actions, and every secret the call names its secrets. A trusted listener
// decodes the same requests and checks none of that.
//
// To a key without rights on a name, a secret that exists and one that does not look the
// same. ListSecrets and ListTagResources show such a key only what it may use.
//
// # Answers
//
// Answers hold RequestId, which is also in the header x-acs-request-id. They are JSON, the
// default of the KMS API, or XML where Format=XML says so, in any case of letters, or, without
// Format, where Accept names XML and nothing that JSON is. The root of an answer in XML is
// <ActionResponse>, such as <GetSecretValueResponse>, that of an error <Error>, and a list repeats
// its element: <VersionStages><VersionStage>a</VersionStage>…</VersionStages>. A value is read back
// byte for byte. One with a character that XML 1.0 cannot carry, a control character other than
// tab, line feed and carriage return, or U+FFFE or U+FFFF, is refused with 400
// InvalidParameter.Format, which no client asks again; JSON carries it. Refusals come in the
// format that was asked for, unless the request line and headers could not be read.
//
// Errors have the codes and statuses of the API. What goes wrong inside the backend is logged and
// answered with InternalFailure or ServiceUnavailableTemporary, without details but on a trusted listener. The
// message of a change that may have been made all the same says that its outcome is unknown.
//
// # Watching
//
// With Options.Watch a signed listener has one action of our own, x-secretagent-watch, for agents
// whose upstream is this API. It waits until a secret that the key may read has changed, at most
// WaitSeconds and 20 seconds, and answers
//
//	{"Cursor":"…","Changed":["app/db"],"Missed":false,"RequestId":"…"}
//
// Cursor is from where to go on: what happens between two polls is told by the next. Missed says
// that there may be changes that are not named, and everything that is held must be looked at:
// after a restart of the server, after more than 4096 changes, when nobody has watched with the key
// for two minutes, or when its rights have changed. The first cursor is in the header x-secretagent-watch of every answer to
// GetSecretValue, from before the read; it is also how a client knows that the action is there.
// Signature, nonce and rights are those of GetSecretValue. 256 clients can wait; when there are more,
// package slots decides whose wait ends, and who finds no room is throttled for 30 seconds.
//
// Where the backend tells of no changes, as the cloud does not, somebody must look for them:
// [Server.Watched] says for which secrets.
//
// # Design notes
//
// A poll carries no list of secrets: it costs the same whatever its client holds, and the server
// remembers names of changes, not clients. 100 agents that wait cost it five requests a second. In
// return a client hears of all that it may read; it drops what it does not hold. A cursor is
// encrypted, with the rights of its key in it: it would count changes of secrets that the key may
// not know of.
//
// Replays. A nonce is remembered after its signature was verified, per access key, until its
// timestamp has left the window, also when the key is removed meanwhile and added again.
// When the memory of a key is full its requests are throttled
// (Rejected.Throttling): forgetting early would open the door that the memory keeps shut.
// The memory does not outlive the process: for 15 minutes after a restart, requests recorded
// before it could be replayed by somebody who reads the traffic. Loopback and TLS are the
// protection against that reader.
//
// SignatureDoesNotMatch ends with the string to sign, which lets the official SDK tell a
// wrong secret from a broken signer. For V1 that string contains every parameter, and clients
// print error messages, so it is left out where a parameter may hold a secret; the message
// then names the likely cause itself. It is never logged.
//
// The backend itself leaves out of ListSecrets and ListTagResources what a key may not see, so
// that pages, counts and tokens are right for what is left and tell nothing of the rest.
//
// Only requests are decoded here, never judged: limits and rules of the object model are the
// backend's, so that they hold on every way in. The exceptions are what a backend cannot see:
// a number that is given as zero, which means "default" inside, and the parameters of secrets
// that the cloud rotates, which the backends served here do not have.
//
// The read buffer of a connection holds a whole request line of 160 KiB, because both SDKs
// put a value of up to 92160 encoded bytes there. It is given back as soon as the request was
// read, and the number of connections is bounded: 128 clients that send slowly hold 20 MiB.
// When all are taken, package slots decides who makes room: clients that have signed nothing yet,
// or those of the access key that has most. A shortage is logged.
//
// Left out: bearer tokens, the signatures ACS4, ACS3-HMAC-SM3 and ACS3-RSA, and
// whatever concerns keys and certificates. Requests for them are refused with a reason.
package kmsserver
