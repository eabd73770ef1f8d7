// Package credentials gives secrets to services of systemd as credentials. A unit has
//
//	LoadCredential=db:/run/secretagent/credentials.sock
//
// and its processes find the secret in $CREDENTIALS_DIRECTORY/db: in memory, readable by the user
// of the unit alone, gone when the unit stops. They need no token, no library and no access to the
// socket.
//
//	srv, err := credentials.New(cache, credentials.Options{Units: []credentials.Unit{
//		{Name: "app.service", Secrets: []credentials.Secret{{Name: "app/*"}, {Credential: "tls", Name: "shared/tls"}}},
//	}})
//	go srv.Serve(ln)
//
// systemd connects before it starts the processes of the unit, from an address in the abstract
// namespace that names unit and credential:
//
//	@5a3f…/unit/app.service/db
//
// It gets the bytes of the value, as they are, and the end of the stream. An address has 107
// characters, so that the names of unit and credential have 84 together; systemd itself refuses
// longer ones.
//
// # Which secret
//
// The rules of a [Unit] say it, without a look at what secrets there are:
//
//   - {Credential: "db", Name: "app/prod/db:ACSPrevious"} names the secret of one credential.
//   - {Name: "shared/tls"} is the credential that is called as the last part of the name: tls.
//   - {Name: "app/*"} is every other credential: its name takes the place of the star, and db gets
//     app/db. Names of credentials have no slash, so that db never gets app/x/db. A unit has at
//     most one such rule.
//   - %i stands for the instance of a template unit: for app@blue.service, app/%i/* and the
//     credential db are app/blue/db.
//
// The name of a [Unit] may have * and ?, as app@*.service. Of several that fit, the unit's own name
// counts and then the longest; their rules are not joined.
//
// # Who may ask
//
// Anybody can bind such an address. So the peer must be root, as the kernel says (SO_PEERCRED):
// only the system's manager gets an answer, and other processes of root, which could read the
// memory of the agent as well. Managers of users (systemctl --user) are refused: their users choose
// the names of units. So is a peer in another pid namespace, such as root of a container: the
// manager of this host is none. The socket should be closed to others anyway; listen makes it 0600.
//
// # Refusing
//
// An empty answer would be an empty credential, and the unit would start with that: the protocol
// has no word for no. Whatever is refused or fails is therefore answered with more than a credential
// may have, zeros of one byte beyond 1 MiB, which systemd gives up on: the unit fails with
// 243/CREDENTIALS, and its log says "Argument list too long". The reason is in the log of the
// agent. The same happens to units that wait when the agent stops. An agent that is killed cannot
// do it: a unit that waits at this moment starts with an empty credential.
//
// # Bounds
//
// A value that is held is given out at once, a stale one too while the upstream does not answer,
// as to any reader. Without one, the unit waits until the upstream answers, for MaxWait at most;
// that a secret does not exist, or may not be read, ends it at once. MaxConnections are answered at
// the same time. More wait in line in the kernel, and connections are never closed to make room for
// others, which would be an empty credential again. A reader that does not read for 20 seconds is
// given up: of a value that is larger than what the kernel buffers, it then has a part.
package credentials
