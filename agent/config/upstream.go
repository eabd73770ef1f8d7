package config

import (
	"net"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"secretagent/upstream"
)

// Upstream says where secrets come from: exactly one of its fields is set.
type Upstream struct {
	Local   *Local   `yaml:"local"`
	Alibaba *Alibaba `yaml:"alibaba"`
}

// Local is the built-in backend.
type Local struct {
	Database    Path   `yaml:"database" default:"./var/data/secrets.db"`
	Keyring     Path   `yaml:"keyring" default:"./var/keys/keyring.json" path:"watch"` // created when missing
	MaxVersions int    `yaml:"maxVersions" default:"10" min:"2" max:"100"`             // of one secret
	Seed        []Seed `yaml:"seed"`
	API         API    `yaml:"api"`
}

// Seed is a secret that is created on start where it is missing, for demonstrations and
// tests. A secret that exists is left alone, whatever its value.
type Seed struct {
	Name      upstream.SecretName `yaml:"name" required:"true"`
	VersionID upstream.VersionID  `yaml:"versionId" default:"v1"`
	Data      upstream.SecretData `yaml:"data" required:"true"`
}

// API is the KMS API that the built-in backend serves.
type API struct {
	// Socket is the unix socket of the command line, 0600: who can open it may do
	// everything. Empty means none.
	Socket Path `yaml:"socket" default:"./var/run/kms.sock" off:"true"`

	// Listen is a TCP address for SDKs; empty means none. Only a loopback address may do
	// without TLS.
	Listen     string      `yaml:"listen" off:"true"`
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
}

// KMSEndpoint is one gateway of the service.
type KMSEndpoint struct {
	Region string `yaml:"region"`          // such as cn-hangzhou; may be left out where Host tells it
	Host   string `yaml:"host" off:"true"` // with an optional port; empty: kms.REGION.aliyuncs.com
	Scheme string `yaml:"scheme" default:"https" enum:"https|http"`
	CAFile Path   `yaml:"caFile" path:"watch"` // PEM; empty: the CAs of the system
}

// Credentials says how the agent identifies itself. Which of the keys belong to which type is
// listed in credentialKeys.
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

// credentialKeys says which keys each type of credentials needs and which it takes besides;
// the latter come from the environment variables of the cloud where they are not given.
// :: type → keys
var credentialKeys = map[string]struct{ needs, takes []string }{
	"default":    {},
	"access_key": {needs: []string{"accessKeyIdFile", "accessKeySecretFile"}},
	"sts":        {needs: []string{"accessKeyIdFile", "accessKeySecretFile", "securityTokenFile"}},
	"ram_role_arn": {takes: []string{"accessKeyIdFile", "accessKeySecretFile", "securityTokenFile",
		"roleArn", "roleSessionName", "sessionDuration", "externalId", "policy", "stsEndpoint"}},
	"ecs_ram_role":    {takes: []string{"roleName", "disableIMDSv1"}},
	"oidc_role_arn":   {takes: []string{"roleArn", "oidcProviderArn", "oidcTokenFile", "roleSessionName", "sessionDuration", "policy", "stsEndpoint"}},
	"credentials_uri": {takes: []string{"uri"}},
	"profile":         {takes: []string{"profile", "profileFile"}},
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

func (u *Upstream) check(p *problems) {
	switch {
	case u.Local == nil && u.Alibaba == nil:
		p.addf("upstream", "", "must contain local or alibaba")
	case u.Local != nil && u.Alibaba != nil:
		p.addf("upstream", "", "must contain only one of local and alibaba")
	}
	if u.Local != nil {
		u.Local.check(p)
	}
	if u.Alibaba != nil {
		u.Alibaba.check(p)
	}
}

func (l *Local) check(p *problems) {
	const section = "upstream.local"
	names := map[upstream.SecretName]bool{}
	for i, s := range l.Seed {
		at := key(section+".seed[%d]", i)
		if names[s.Name] && s.Name != "" {
			p.addf(at+".name", string(s.Name), "is seeded twice: keep one")
		}
		names[s.Name] = true
		if strings.HasPrefix(string(s.Name), "acs/") {
			p.addf(at+".name", string(s.Name), "names that start with acs/ belong to the service")
		}
		if n := s.Data.Len(); n > maxSecretData || n == 0 && p.has(at+".data") {
			p.addf(at+".data", "", "must have 1 to %d bytes, these are %d", maxSecretData, n)
		}
	}
	api := &l.API
	checkListen(p, section+".api.listen", api.Listen)
	if api.Listen == "" && api.TLS != nil {
		p.addf(section+".api.tls", "", "has no use without api.listen")
	}
	if api.Listen != "" && !loopback(api.Listen) && api.TLS == nil {
		p.addf(section+".api.listen", api.Listen, "is no loopback address: set tls, or listen on 127.0.0.1")
	}
	if api.Listen != "" && len(api.AccessKeys) == 0 {
		p.addf(section+".api.accessKeys", "", "must hold a key: without one nobody can use api.listen")
	}
	ids, files := map[string]bool{}, map[Path]bool{}
	for i, k := range api.AccessKeys {
		at := key(section+".api.accessKeys[%d]", i)
		if p.has(at+".id") && !accessKeyID.MatchString(k.ID) {
			p.addf(at+".id", k.ID, "must be 1 to 128 letters, digits, dots, dashes and underscores")
		}
		if ids[k.ID] && k.ID != "" {
			p.addf(at+".id", k.ID, "is given to two keys: choose another")
		}
		if files[k.SecretFile] && k.SecretFile != "" {
			p.addf(at+".secretFile", string(k.SecretFile), "is shared by two keys: give each its own")
		}
		ids[k.ID], files[k.SecretFile] = true, true
		checkGlobs(p, at+".actions", k.Actions)
		checkGlobs(p, at+".secrets", k.Secrets)
	}
}

// maxSecretData is the limit of the KMS API.
const maxSecretData = 30720

var (
	accessKeyID = regexp.MustCompile(`^[A-Za-z0-9._-]{1,128}$`)
	sharedHost  = regexp.MustCompile(`(?i)^kms(-vpc)?\.[a-z0-9-]+\.aliyuncs\.com(:\d+)?$`)
	regionID    = regexp.MustCompile(`^[a-z0-9-]{2,64}$`)
	hostPort    = regexp.MustCompile(`^[A-Za-z0-9.-]+(:[0-9]{1,5})?$|^\[[0-9A-Fa-f:.]+\](:[0-9]{1,5})?$`)
)

func (a *Alibaba) check(p *problems) {
	const section = "upstream.alibaba"
	if p.has(section+".endpoints") && len(a.Endpoints) == 0 {
		p.addf(section+".endpoints", "", "must hold at least one endpoint")
	}
	for i, e := range a.Endpoints {
		at := key(section+".endpoints[%d]", i)
		if e.Region == "" && !p.has(at+".region") && !sharedHost.MatchString(e.Host) && !loopback(e.Host) {
			p.addf(at+".region", "", "is missing: the host does not tell it")
		}
		if p.has(at+".region") && !regionID.MatchString(e.Region) {
			p.addf(at+".region", e.Region, "must be a region id such as cn-hangzhou")
		}
		if e.Host != "" && !hostPort.MatchString(e.Host) {
			p.addf(at+".host", e.Host, "must be a host name, with :port if need be; the scheme has a key of its own")
		}
		if e.Scheme == "http" && !loopback(e.Host) {
			p.addf(at+".scheme", e.Scheme, "plain http is allowed for a loopback host only: use https")
		}
		if e.Scheme == "http" && e.CAFile != "" {
			p.addf(at+".caFile", string(e.CAFile), "has no use with scheme http")
		}
	}
	if a.Deadline < a.Timeout {
		p.addf(section+".deadline", a.Deadline.String(), "must not be shorter than timeout, %s: no attempt could use it", a.Timeout)
	}
	if a.Retry.Cap < a.Retry.Base {
		p.addf(section+".retry.cap", a.Retry.Cap.String(), "must not be shorter than base, %s", a.Retry.Base)
	}
	if a.Breaker.MaxPause < a.Breaker.Pause {
		p.addf(section+".breaker.maxPause", a.Breaker.MaxPause.String(), "must not be shorter than pause, %s", a.Breaker.Pause)
	}
	a.Credentials.check(p, section+".credentials")
}

func (c *Credentials) check(p *problems, section string) {
	rule, known := credentialKeys[c.Type]
	if !known {
		return
	}
	for _, name := range rule.needs {
		if !p.has(joinKey(section, name)) {
			p.addf(joinKey(section, name), "", "is missing: type %s needs it", c.Type)
		}
	}
	for _, f := range fieldsOfCredentials() {
		if p.has(joinKey(section, f)) && !slices.Contains(rule.needs, f) && !slices.Contains(rule.takes, f) {
			p.addf(joinKey(section, f), "", "is not used by type %s; it belongs to %s", c.Type, strings.Join(typesThatUse(f), ", "))
		}
	}
	if (c.AccessKeyIDFile == "") != (c.AccessKeySecretFile == "") && len(rule.needs) == 0 {
		p.addf(section, "", "must have both accessKeyIdFile and accessKeySecretFile, or none")
	}
	if c.STSEndpoint != "" && !hostPort.MatchString(c.STSEndpoint) {
		p.addf(section+".stsEndpoint", c.STSEndpoint, "must be a host name, without scheme or path")
	}
	for _, role := range []struct{ name, value string }{{"roleArn", c.RoleARN}, {"oidcProviderArn", c.OIDCProviderARN}} {
		if role.value != "" && !strings.HasPrefix(role.value, "acs:ram::") {
			p.addf(joinKey(section, role.name), role.value, "must be an ARN that starts with acs:ram::")
		}
	}
	if c.URI != "" {
		u, err := url.Parse(c.URI)
		switch {
		case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https":
			p.addf(section+".uri", "", "must be an http or https URL")
		case u.User != nil:
			p.addf(section+".uri", "", "must not contain a user or password")
		}
	}
}

func fieldsOfCredentials() []string {
	var names []string
	for _, rule := range credentialKeys {
		names = append(names, rule.needs...)
		names = append(names, rule.takes...)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func typesThatUse(name string) []string {
	var types []string
	for t, rule := range credentialKeys {
		if slices.Contains(rule.needs, name) || slices.Contains(rule.takes, name) {
			types = append(types, t)
		}
	}
	slices.Sort(types)
	return types
}

// checkListen checks the form of a TCP address to listen on.
func checkListen(p *problems, key, addr string) {
	if addr == "" {
		return
	}
	_, port, err := net.SplitHostPort(addr)
	if err != nil || !validPort(port) {
		p.addf(key, addr, "must be host:port, such as 127.0.0.1:2025, or off")
	}
}

func validPort(port string) bool {
	if port == "" || len(port) > 5 || strings.Trim(port, "0123456789") != "" {
		return false
	}
	n := 0
	for _, c := range port {
		n = n*10 + int(c-'0')
	}
	return n <= 65535
}

// loopback reports whether addr, with or without a port, stays on this host.
func loopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		host = strings.Trim(addr, "[]")
	}
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

var glob = regexp.MustCompile(`^[A-Za-z0-9_/+=.@*?-]{1,192}$`)

// checkGlobs checks a list of patterns over names.
func checkGlobs(p *problems, at string, globs []string) {
	if p.has(at) && len(globs) == 0 {
		p.addf(at, "", `must not be empty; ["*"] allows everything`)
	}
	for i, g := range globs {
		if !glob.MatchString(g) {
			p.addf(key("%s[%d]", at, i), g, "must be a name, with * for any text and ? for one character")
		}
	}
}
