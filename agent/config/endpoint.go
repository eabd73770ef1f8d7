package config

import (
	"slices"
	"time"
)

// Endpoint is where applications ask for secrets.
type Endpoint struct {
	// Listen is a TCP address; empty means none. An address that is not loopback needs
	// AllowNonLoopback and TLS.
	Listen           string   `yaml:"listen" default:"127.0.0.1:2025" off:"true" address:"true"`
	AllowNonLoopback bool     `yaml:"allowNonLoopback" default:"false"`
	AllowedHosts     []string `yaml:"allowedHosts"` // Host headers accepted besides loopback ones
	TLS              *TLS     `yaml:"tls"`          // nil: plain HTTP on the TCP listener

	// Socket is a unix socket; empty means none.
	Socket      Path     `yaml:"socket" off:"true" path:"write"`
	SocketMode  FileMode `yaml:"socketMode" default:"0600"`
	SocketUser  Account  `yaml:"socketUser"`
	SocketGroup Account  `yaml:"socketGroup"`

	// TokenFile holds the token that clients present where there are no Callers; created when
	// missing, with TokenMode and TokenGroup.
	TokenFile                      Path     `yaml:"tokenFile" default:"$STATE_DIRECTORY/run/token" path:"watch,write"`
	TokenMode                      FileMode `yaml:"tokenMode"`  // zero: 0600 of a file that is created
	TokenGroup                     Account  `yaml:"tokenGroup"` // set: TokenMode is 0640 where it is not set
	tokenVariable, tokenPassedOver string   // see the methods of these names

	TokenGrace time.Duration `yaml:"tokenGrace" default:"1m" min:"0s" max:"24h"` // how long a replaced token still counts
	Headers    []string      `yaml:"headers" default:"X-KMS-Token|X-Vault-Token|X-Aws-Parameters-Secrets-Token"`
	Callers    []Caller      `yaml:"callers"` // empty: who holds TokenFile reads everything

	VaultMounts []VaultMount `yaml:"vaultMounts"` // below /v1/; empty: no path is Vault's

	PathPrefix string `yaml:"pathPrefix" default:"/v1/"`
	Format     string `yaml:"format" default:"kms" enum:"kms|aws|vault|raw"` // of answers to requests that name none
	StatusPage bool   `yaml:"statusPage" default:"true"`                     // GET /status answers browsers with a page

	MaxConnections int `yaml:"maxConnections" default:"800" min:"1" max:"1000000"`
	MaxWaiting     int `yaml:"maxWaiting" default:"4096" min:"1" max:"1000000"` // long polls at once
	// A connection is closed after so many requests, and when a request line with its headers is
	// longer.
	MaxRequests    int      `yaml:"maxRequestsPerConnection" default:"1000000" min:"1" max:"16000000"`
	MaxHeaderBytes ByteSize `yaml:"maxHeaderBytes" default:"8KiB" min:"1KiB" max:"1MiB"`
	MaxBatch       int      `yaml:"maxBatch" default:"100" min:"1" max:"1000"` // secrets in one batch

	MaxWait        time.Duration `yaml:"maxWait" default:"5m" min:"1s" max:"24h"`            // of one long poll
	RequestTimeout time.Duration `yaml:"requestTimeout" default:"10s" min:"100ms" max:"10m"` // first byte in to last byte out
	LookupTimeout  time.Duration `yaml:"lookupTimeout" default:"10s" min:"100ms" max:"10m"`  // of the cache, upstream included
	IdleTimeout    time.Duration `yaml:"idleTimeout" default:"2m" min:"1s" max:"24h"`        // of a connection between requests

	Audit *Audit `yaml:"audit"` // nil: no audit log

	Credentials *UnitCredentials `yaml:"credentials"` // nil: none for systemd
}

// UnitCredentials are secrets for the services of systemd.
type UnitCredentials struct {
	Socket  Path                   `yaml:"socket" required:"true" path:"write"` // that LoadCredential= names
	Units   map[string]UnitSecrets `yaml:"units" required:"true"`               // by name of the unit
	MaxWait time.Duration          `yaml:"maxWait" default:"30s" min:"1s" max:"10m"`
}

// UnitSecrets are what a unit gets. In YAML they are a list of names of secrets, or a section of
// credentials and the secrets that stand for them.
type UnitSecrets []UnitSecret

// UnitSecret is a name of the list, or a pair of the section.
type UnitSecret struct {
	Credential string // empty in a list
	Secret     string
}

// VaultMount is where applications of Vault expect a KV store. A mount of version 2 may be written
// as its name alone.
type VaultMount struct {
	Name    string `yaml:"name" required:"true" short:"true"`
	Version int    `yaml:"version" min:"1" max:"2"` // of the KV API; zero: 2
}

// Caller is an application and what it may read. It is known by its token, or on the unix
// socket by the user or group of its process; when both are set, both must fit.
type Caller struct {
	Name       string   `yaml:"name" required:"true"`
	TokenFile  Path     `yaml:"tokenFile" path:"watch"` // created when missing, as that of Endpoint
	TokenMode  FileMode `yaml:"tokenMode"`
	TokenGroup Account  `yaml:"tokenGroup"`
	UIDs       []int    `yaml:"uids" min:"0" max:"4294967294"`
	GIDs       []int    `yaml:"gids" min:"0" max:"4294967294"`
	Secrets    []string `yaml:"secrets"` // globs over secret names

	Format string `yaml:"format" enum:"kms|aws|vault|raw"` // empty: that of the endpoint
	List   bool   `yaml:"list" default:"false"`            // applications of Vault see which of the declared secrets it may read

	// Whether it sees all of /status and /ready, and all of /metrics, or what concerns the secrets
	// that it may read. Left out: true of a caller that may read every secret, "*".
	Status  bool `yaml:"status"`
	Metrics bool `yaml:"metrics"`
}

// Audit is the log of who asked for what, as JSON lines. Exactly one of File and Stderr is
// set.
type Audit struct {
	File   Path `yaml:"file" path:"write"` // appended to, 0600; reopened on SIGHUP; see keyfile.OpenLog
	Stderr bool `yaml:"stderr" default:"false"`
	Sample int  `yaml:"sample" default:"1" min:"1" max:"1000000"` // one of this many hits is written; refusals always
}

func (e *Endpoint) check(p *problems) {
	e.checkListeners(p)
	for name, value := range map[string]string{"tokenFile": string(e.TokenFile), "tokenMode": "", "tokenGroup": string(e.TokenGroup)} {
		if len(e.Callers) > 0 && p.has("endpoint."+name) {
			p.addf("endpoint."+name, value, "opens nothing where endpoint.callers are set: give it to one of them")
		}
	}
	shareToken(&e.TokenMode, e.TokenGroup)
	e.findToken(p)
	tokens := map[Path]bool{}
	for i, c := range e.Callers {
		at := key("endpoint.callers[%d]", i)
		for name, right := range map[string]*bool{"status": &e.Callers[i].Status, "metrics": &e.Callers[i].Metrics} {
			if !p.has(at + "." + name) {
				*right = slices.Contains(c.Secrets, "*")
			}
		}
		if tokens[c.TokenFile] && c.TokenFile != "" {
			p.addf(at+".tokenFile", string(c.TokenFile), "is used twice: give every caller a token of its own")
		}
		tokens[c.TokenFile] = true
		for _, name := range []string{"tokenMode", "tokenGroup"} {
			if c.TokenFile == "" && p.has(at+"."+name) {
				p.addf(at+"."+name, "", "has no use without tokenFile")
			}
		}
		shareToken(&e.Callers[i].TokenMode, c.TokenGroup)
		for _, name := range []string{"uids", "gids"} {
			if e.Socket == "" && p.has(at+"."+name) {
				p.addf(at+"."+name, "", "works on endpoint.socket only, which is not set")
			}
		}
	}
	if a := e.Audit; a != nil {
		switch {
		case a.File == "" && !a.Stderr:
			p.addf("endpoint.audit", "", "must set file or stderr")
		case a.File != "" && a.Stderr:
			p.addf("endpoint.audit.stderr", "true", "must not be combined with file: choose one")
		}
	}
}

func (e *Endpoint) checkListeners(p *problems) {
	if e.Listen == "" && e.TLS != nil {
		p.addf("endpoint.tls", "", "has no use without endpoint.listen")
	}
	if e.Socket == "" {
		for _, name := range []string{"socketMode", "socketUser", "socketGroup"} {
			if p.has("endpoint." + name) {
				p.addf("endpoint."+name, "", "has no use without endpoint.socket")
			}
		}
	}
	if c := e.Credentials; c != nil && c.Socket == e.Socket && c.Socket != "" {
		p.addf("endpoint.credentials.socket", string(c.Socket), "must be another one than endpoint.socket")
	}
}

// shareToken lets the group that a token file is given read it, where nothing else is said.
func shareToken(mode *FileMode, group Account) {
	if *mode == 0 && group != "" {
		*mode = 0o640
	}
}
