package config

import (
	"time"

	"secretagent/upstream"
)

// Upstream says where secrets come from: exactly one of its fields is set.
type Upstream struct {
	Local   *Local   `yaml:"local"`
	Etcd    *Etcd    `yaml:"etcd"`
	Alibaba *Alibaba `yaml:"alibaba"`
}

// Local is the built-in backend.
type Local struct {
	Database    Path    `yaml:"database" default:"$STATE_DIRECTORY/data/secrets.db" path:"write"`
	Keyring     Path    `yaml:"keyring" default:"$STATE_DIRECTORY/keys/keyring.json" path:"watch,write"` // created when missing
	MaxVersions int     `yaml:"maxVersions" default:"10" min:"2" max:"100"`                              // of one secret
	Emulate     Emulate `yaml:"emulate"`
	Seed        []Seed  `yaml:"seed"`
	API         API     `yaml:"api"`
}

// Etcd is the built-in backend on a cluster of etcd, which any number of agents share.
type Etcd struct {
	Endpoints    []string      `yaml:"endpoints" required:"true"` // URLs of the members
	Prefix       string        `yaml:"prefix" required:"true"`    // of every key; ends with a slash
	TLS          *EtcdTLS      `yaml:"tls"`
	User         string        `yaml:"user"`
	PasswordFile Path          `yaml:"passwordFile" path:"watch"`
	Timeout      time.Duration `yaml:"timeout" default:"5s" min:"100ms" max:"5m"`  // of a request
	Keyring      Path          `yaml:"keyring" required:"true" path:"watch"`       // the same on every agent
	MaxVersions  int           `yaml:"maxVersions" default:"10" min:"2" max:"100"` // of one secret
	Emulate      Emulate       `yaml:"emulate"`
	Seed         []Seed        `yaml:"seed"`
	API          API           `yaml:"api"`
}

// EtcdTLS is how the members are verified and what they are shown.
type EtcdTLS struct {
	CAFile   Path `yaml:"caFile" path:"watch"` // PEM; empty: the CAs of the system
	CertFile Path `yaml:"certFile" path:"watch"`
	KeyFile  Path `yaml:"keyFile" path:"watch"`
}

// Emulate is what the built-in backend does as the cloud does it, for infrastructure code.
type Emulate struct {
	InstanceID     string   `yaml:"instanceId"`                     // of a KMS instance, whose secrets have policies; empty: none
	Keys           []string `yaml:"keys"`                           // of the cloud, which secrets may name
	PutMovesStages bool     `yaml:"putMovesStages" default:"false"` // by a repeated PutSecretValue
}

// Seed is a secret that is created at a start, once for each database and name, for
// demonstrations and tests. A secret that exists is left alone, whatever its value; one that was
// deleted stays deleted.
type Seed struct {
	Name      upstream.SecretName `yaml:"name" required:"true"`
	VersionID upstream.VersionID  `yaml:"versionId" default:"v1"`
	Data      upstream.SecretData `yaml:"data" required:"true"`
}

// API is the KMS API that the agent serves.
type API struct {
	// Socket is the unix socket of the command line, 0600: who can open it may do
	// everything. Empty means none.
	Socket Path `yaml:"socket" default:"$STATE_DIRECTORY/run/kms.sock" off:"true" path:"write"`

	// Listen is a TCP address for SDKs; empty means none. Only a loopback address may do
	// without TLS.
	Listen     string      `yaml:"listen" off:"true" address:"true"`
	TLS        *TLS        `yaml:"tls"`
	AccessKeys []AccessKey `yaml:"accessKeys"`
}

// TLS is the certificate of a listener.
type TLS struct {
	CertFile     Path `yaml:"certFile" required:"true" path:"watch"` // PEM, the leaf first
	KeyFile      Path `yaml:"keyFile" required:"true" path:"watch"`
	ClientCAFile Path `yaml:"clientCAFile" path:"watch"` // set: clients must show a certificate of these CAs
}

// AccessKey is an identity of the KMS API over TCP and what it may do.
type AccessKey struct {
	ID         string   `yaml:"id" required:"true"`
	SecretFile Path     `yaml:"secretFile" required:"true" path:"watch"` // created 0600 when missing
	Actions    []string `yaml:"actions" required:"true"`                 // globs over API actions
	Secrets    []string `yaml:"secrets" required:"true"`                 // globs over secret names
}

// Alibaba is Alibaba Cloud KMS.
type Alibaba struct {
	Endpoints     []KMSEndpoint `yaml:"endpoints" required:"true"` // in order of preference
	Credentials   Credentials   `yaml:"credentials"`
	Timeout       time.Duration `yaml:"timeout" default:"5s" min:"100ms" max:"5m"`   // of one attempt
	Deadline      time.Duration `yaml:"deadline" default:"20s" min:"100ms" max:"1h"` // of a call with all its attempts
	Retry         Retry         `yaml:"retry"`
	Budget        Budget        `yaml:"budget"`
	Breaker       Breaker       `yaml:"breaker"`
	MaxConcurrent int           `yaml:"maxConcurrent" default:"32" min:"1" max:"1024"` // calls under way at once
	API           *API          `yaml:"api"`                                           // nil: none
}

// KMSEndpoint is one gateway of the service.
type KMSEndpoint struct {
	Region string `yaml:"region"`          // such as cn-hangzhou; may be left out where Host tells it
	Host   string `yaml:"host" off:"true"` // with an optional port; empty: kms.REGION.aliyuncs.com
	Scheme string `yaml:"scheme" default:"https" enum:"https|http"`
	CAFile Path   `yaml:"caFile" path:"watch"` // PEM; empty: the CAs of the system
}

// Credentials says how the agent identifies itself. The type decides which of the keys it takes.
type Credentials struct {
	Type string `yaml:"type" default:"default" enum:"default|access_key|sts|ram_role_arn|ecs_ram_role|oidc_role_arn|credentials_uri|profile"`

	AccessKeyIDFile     Path `yaml:"accessKeyIdFile" path:"watch"`
	AccessKeySecretFile Path `yaml:"accessKeySecretFile" path:"watch"`
	SecurityTokenFile   Path `yaml:"securityTokenFile" path:"watch"`

	RoleARN         string        `yaml:"roleArn"`
	RoleSessionName string        `yaml:"roleSessionName"`
	SessionDuration time.Duration `yaml:"sessionDuration" default:"1h" min:"15m" max:"12h"`
	ExternalID      string        `yaml:"externalId" show:"never"`
	Policy          string        `yaml:"policy"`      // JSON that narrows the role
	STSEndpoint     string        `yaml:"stsEndpoint"` // host; empty: sts.aliyuncs.com, or as the environment says
	OIDCProviderARN string        `yaml:"oidcProviderArn"`
	OIDCTokenFile   Path          `yaml:"oidcTokenFile" path:"watch"`

	RoleName      string `yaml:"roleName"`                      // of the ECS instance; empty: the metadata service knows
	DisableIMDSv1 bool   `yaml:"disableIMDSv1" default:"false"` // refuse a metadata service without sessions

	URI string `yaml:"uri" show:"never"` // it may hold a token

	Profile     string `yaml:"profile"`
	ProfileFile Path   `yaml:"profileFile" path:"watch"` // empty: where the aliyun CLI keeps it
}

// Retry is how often and how patiently a failed call is repeated.
type Retry struct {
	MaxAttempts int           `yaml:"maxAttempts" default:"4" min:"1" max:"100"` // the first one counts
	Base        time.Duration `yaml:"base" default:"200ms" min:"1ms" max:"1m"`   // first pause, doubled each time
	Cap         time.Duration `yaml:"cap" default:"5s" min:"1ms" max:"10m"`      // longest pause
}

// Budget bounds how many calls this agent makes.
type Budget struct {
	PerSecond float64 `yaml:"perSecond" default:"50" min:"0.03" max:"1000000"`
	Burst     int     `yaml:"burst" default:"100" min:"1" max:"1000000"`
}

// Breaker says when to stop asking a service that only fails.
type Breaker struct {
	Failures int           `yaml:"failures" default:"10" min:"1" max:"1000000"` // attempts in a row that open it
	Pause    time.Duration `yaml:"pause" default:"2s" min:"10ms" max:"1h"`      // before the first probe, doubled while probes fail
	MaxPause time.Duration `yaml:"maxPause" default:"1m" min:"10ms" max:"24h"`  // longest pause
}

// API returns the KMS API that the agent serves, and the key of its section; nil for none.
func (u *Upstream) API() (api *API, section string) {
	switch {
	case u.Local != nil:
		return &u.Local.API, "upstream.local.api"
	case u.Etcd != nil:
		return &u.Etcd.API, "upstream.etcd.api"
	case u.Alibaba != nil:
		return u.Alibaba.API, "upstream.alibaba.api"
	}
	return nil, ""
}

func (u *Upstream) check(p *problems) {
	switch kinds := u.kinds(); {
	case kinds == 0:
		p.addf("upstream", "", "must contain local, etcd or alibaba")
	case kinds > 1:
		p.addf("upstream", "", "must contain only one of local, etcd and alibaba")
	}
	if u.Local != nil {
		checkSeed(p, "upstream.local", u.Local.Seed)
	}
	if u.Etcd != nil {
		checkSeed(p, "upstream.etcd", u.Etcd.Seed)
	}
	if api, section := u.API(); api != nil {
		api.check(p, section)
	}
}

// kinds returns how many kinds of upstream are there.
func (u *Upstream) kinds() (n int) {
	for _, there := range []bool{u.Local != nil, u.Etcd != nil, u.Alibaba != nil} {
		if there {
			n++
		}
	}
	return n
}

func checkSeed(p *problems, section string, seed []Seed) {
	names := map[upstream.SecretName]bool{}
	for i, s := range seed {
		if names[s.Name] && s.Name != "" {
			p.addf(key(section+".seed[%d].name", i), string(s.Name), "is seeded twice: keep one")
		}
		names[s.Name] = true
	}
}

func (a *API) check(p *problems, section string) {
	if a.Listen == "" && a.TLS != nil {
		p.addf(key("%s.tls", section), "", "has no use without api.listen")
	}
	if a.Listen != "" && len(a.AccessKeys) == 0 {
		p.addf(key("%s.accessKeys", section), "", "must hold a key: without one nobody can use api.listen")
	}
}
