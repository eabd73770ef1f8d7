package endpoint

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/valyala/fasthttp"

	"secretagent/upstream"
)

// VaultMount is a path below /v1/ at which applications of Vault expect a KV store. All mounts
// show the same secrets.
type VaultMount struct {
	Path    string // one or more segments, without slashes around it, such as secret
	Version int    // of the KV API: 1, or 2; 0 means 2
}

// PrepareVaultMounts checks mounts and returns what replaces those in force by them. The error
// names every problem with the mounts.
func (s *Server) PrepareVaultMounts(mounts []VaultMount) (set func(), err error) {
	var problems upstream.OptionErrors
	if checkMounts(&problems, mounts); len(problems) > 0 {
		return nil, problems
	}
	next := newVaultMounts(mounts)
	return func() { s.mounts.Store(next) }, nil
}

// checkMounts adds every problem with mounts.
func checkMounts(p *upstream.OptionErrors, mounts []VaultMount) {
	for i, m := range mounts {
		at := fmt.Sprintf("vaultMounts[%d]", i)
		first, _, _ := strings.Cut(m.Path, "/")
		switch {
		case !mountPath.MatchString(m.Path):
			p.Addf(at, m.Path, "must be a path without slashes around it, such as secret")
		case slices.Contains(vaultsOwn, first):
			p.Addf(at, m.Path, "is one of Vault's own paths: choose the mount of a KV store, such as secret")
		}
		if m.Version < 0 || m.Version > 2 {
			p.Addf(at+".version", strconv.Itoa(m.Version), "must be 1 or 2")
		}
		for _, other := range mounts[:i] {
			if other.Path == m.Path {
				p.Addf(at, m.Path, "is given twice: keep one")
			} else if strings.HasPrefix(other.Path+"/", m.Path+"/") || strings.HasPrefix(m.Path+"/", other.Path+"/") {
				p.Addf(at, m.Path, "and %s lie within each other: keep one", other.Path)
			}
		}
	}
}

var mountPath = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}(/[A-Za-z0-9._-]{1,64}){0,7}$`)

// vaultsOwn are the first segments of paths that belong to Vault itself.
var vaultsOwn = []string{"sys", "auth", "cubbyhole", "identity"}

// vaultMounts is immutable.
type vaultMounts struct{ list []vaultMount }

// vaultMount is a mount with its paths behind vaultPrefix, and what is told about it.
type vaultMount struct {
	root           []byte // without a slash behind it
	kv1            bool
	data, metadata []byte // behind the root; with a slash behind each
	about          []byte
}

// newVaultMounts returns nil for none.
func newVaultMounts(mounts []VaultMount) *vaultMounts {
	if len(mounts) == 0 {
		return nil
	}
	set := &vaultMounts{}
	for _, m := range mounts {
		version := strconv.Itoa(cmp.Or(m.Version, 2))
		set.list = append(set.list, vaultMount{
			root: []byte(m.Path), kv1: m.Version == 1, data: []byte("data/"), metadata: []byte("metadata/"),
			about: encode(vaultAnswer{Data: map[string]any{
				"path": m.Path + "/", "type": "kv", "description": "", "accessor": "", "uuid": "", "local": false, "seal_wrap": false,
				"external_entropy_access": false, "config": struct{}{}, "options": map[string]string{"version": version}, // text: no client takes a number
			}}),
		})
	}
	return set
}

// vaultPrefix precedes all paths of Vault, whatever the prefix of names elsewhere.
var vaultPrefix = []byte("/v1/")

// Routes of Vault's paths. What is asked for is in the path, so that parameters which control no
// read are ignored, as Vault does.
var (
	routeKV2      = &route{op: "GetSecretValue", params: paramsOfValue | paramVersion, methods: methodGet | methodList, named: true, handle: (*Server).getOrList}
	routeKV1      = &route{op: "GetSecretValue", params: paramsOfValue | paramList, methods: methodGet | methodList, named: true, format: formatKV1, handle: (*Server).getOrList}
	routeMetadata = &route{op: "ListSecretVersionIds", params: paramList, methods: methodGet | methodList, named: true, loose: true, handle: (*Server).vaultMetadata}
	routeMount    = &route{op: "DescribeMount", loose: true, handle: (*Server).vaultMount}

	// routeBelow is a name of the KMS Agent's family that happens to begin like a mount. Some
	// clients of Vault LIST such paths, and must not be told that there is no such method.
	routeBelow = &route{op: "GetSecretValue", params: paramsOfValue | paramList, methods: methodGet | methodList, named: true, handle: (*Server).getOrList}

	// routeNowhere is what is below a mount and stands for nothing.
	routeNowhere = &route{methods: methodGet | methodList, loose: true, handle: (*Server).nowhere}
)

// vaultRoutes are the calls of Vault's clients beside those for secrets. They have constant
// answers.
var vaultRoutes = map[string]*route{
	"/v1/auth/token/lookup-self": {op: "LookupSelf", loose: true, handle: (*Server).vaultSelf},
	"/v1/auth/token/renew-self":  {op: "RenewSelf", loose: true, methods: methodPost | methodPut, handle: (*Server).vaultRenew},
	"/v1/auth/token/revoke-self": {op: "RevokeSelf", loose: true, methods: methodPost | methodPut, handle: (*Server).vaultRevoke},
	"/v1/sys/health":             {op: "Live", loose: true, methods: methodGet | methodHead, health: true, handle: constant(`{"initialized":true,"sealed":false,"standby":false,"performance_standby":false}`)},
	"/v1/sys/seal-status":        {op: "Live", loose: true, health: true, handle: constant(`{"type":"none","initialized":true,"sealed":false,"t":0,"n":0,"progress":0,"nonce":""}`)},
	"/v1/sys/init":               {op: "Live", loose: true, health: true, handle: constant(`{"initialized":true}`)},
}

// constant answers with the same text always.
func constant(text string) func(*Server, *fasthttp.RequestCtx, *conn) {
	b := []byte(text + "\n")
	return func(_ *Server, ctx *fasthttp.RequestCtx, _ *conn) { setJSON(ctx, b) }
}

// What Vault's own paths begin with; mountsPath is followed by the path of which a client asks what
// mount it is in.
var (
	sysPath    = []byte("/v1/sys/")
	authPath   = []byte("/v1/auth/")
	mountsPath = []byte("/v1/sys/internal/ui/mounts/")
)

// routeOf returns the route of a path that is Vault's, nil for one that is not, and the name in
// it. below says that the path is in a mount, Vault's or not.
func (m *vaultMounts) routeOf(path []byte) (r *route, name []byte, below bool) {
	if m == nil {
		return nil, nil, false
	}
	inner, ok := bytes.CutPrefix(path, vaultPrefix)
	if !ok {
		return nil, nil, false
	}
	mount, inner := m.of(inner)
	switch {
	case mount == nil && !bytes.HasPrefix(path, sysPath) && !bytes.HasPrefix(path, authPath): // nearly always
		return nil, nil, false
	case mount == nil && bytes.HasPrefix(path, mountsPath):
		return routeMount, path[len(mountsPath):], false
	case mount == nil:
		return vaultRoutes[string(path)], nil, false
	case mount.kv1:
		return routeKV1, inner, true
	}
	if name, ok := bytes.CutPrefix(inner, mount.data); ok {
		return routeKV2, name, true
	}
	if name, ok := bytes.CutPrefix(inner, mount.metadata); ok {
		return routeMetadata, name, true
	}
	if string(inner) == "metadata" { // the names at the root
		return routeMetadata, nil, true
	}
	return nil, nil, true
}

// of returns the mount that a path behind vaultPrefix is in, nil when in none, and what is behind
// its root.
func (m *vaultMounts) of(path []byte) (mount *vaultMount, inner []byte) {
	for i := range m.list {
		mount := &m.list[i]
		if inner, ok := bytes.CutPrefix(path, mount.root); ok && len(inner) == 0 {
			return mount, inner
		} else if ok && inner[0] == '/' {
			return mount, inner[1:]
		}
	}
	return nil, nil
}

var (
	wrappingRefused = &refusal{"WrappingNotSupported", http.StatusBadRequest, "Answers are not wrapped here: leave out X-Vault-Wrap-TTL.", false}
	mountUnknown    = &refusal{"MountUnknown", http.StatusForbidden, "There is no such mount; endpoint.vaultMounts has those that there are.", false}
	versionsUnknown = &refusal{"UnsupportedOperation", http.StatusBadRequest, "The agent asks its backend for values only: it does not know the versions of a secret.", false}
	tokenNotRevoked = &refusal{"TokenNotRevoked", http.StatusForbidden, "The token ends when its file changes, and cannot be revoked by a request.", false}
)

// refuseWrapping refuses to hand out what the client wants to have wrapped.
func refuseWrapping(h headers) *refusal {
	if h.wrap {
		return wrappingRefused
	}
	return allowed
}

// vaultAnswer is what surrounds every answer of Vault. The id of the request is in a header.
type vaultAnswer struct {
	RequestID     string     `json:"request_id"`
	LeaseID       string     `json:"lease_id"`
	Renewable     bool       `json:"renewable"`      // true would make clients ask for renewal
	LeaseDuration int        `json:"lease_duration"` // 0: clients that poll do it in their own time
	Data          any        `json:"data"`
	WrapInfo      *struct{}  `json:"wrap_info"`
	Warnings      []string   `json:"warnings"`
	Auth          *vaultAuth `json:"auth"`
	MountType     string     `json:"mount_type,omitempty"`
}

type vaultAuth struct {
	ClientToken   string            `json:"client_token"`
	Accessor      string            `json:"accessor"`
	Policies      []string          `json:"policies"`
	TokenPolicies []string          `json:"token_policies"`
	Metadata      map[string]string `json:"metadata"`
	LeaseDuration int               `json:"lease_duration"`
	Renewable     bool              `json:"renewable"`
	EntityID      string            `json:"entity_id"`
	TokenType     string            `json:"token_type"`
	Orphan        bool              `json:"orphan"`
}

// valueVault is the answer of a KV store of version 2.
func valueVault(v *upstream.SecretValue) body {
	stages := make([]string, len(v.VersionStages))
	for i, s := range v.VersionStages {
		stages[i] = string(s)
	}
	return body{contentTypeJSON, upstream.Erasable(encode(vaultAnswer{RequestID: v.RequestID, MountType: "kv", Data: map[string]any{
		"data": vaultData(v),
		"metadata": map[string]any{
			"created_time":    upstream.WireTime(v.CreateTime),
			"custom_metadata": map[string]string{"VersionId": string(v.VersionID), "VersionStages": strings.Join(stages, ",")},
			"deletion_time":   "",
			"destroyed":       false,
			"version":         vaultVersion(v.VersionID),
		},
	}}))}
}

// valueKV1 is the answer of a KV store of version 1, which has no versions.
func valueKV1(v *upstream.SecretValue) body {
	return body{contentTypeJSON, upstream.Erasable(encode(vaultAnswer{RequestID: v.RequestID, MountType: "kv", Data: vaultData(v)}))}
}

// vaultData returns the data of v as an object, which Vault's clients need.
func vaultData(v *upstream.SecretValue) json.RawMessage {
	data := json.RawMessage(upstream.TrimBOM(v.SecretData.Reveal()))
	if !isJSON(data, '{') {
		data = encode(map[string]string{"value": string(v.SecretData.Reveal())})
	}
	return data
}

// vaultVersion returns 7 for 7 and v7, and 0 for ids by which no number asks.
func vaultVersion(id upstream.VersionID) int {
	digits := strings.TrimPrefix(string(id), lettered)
	n, err := strconv.ParseUint(digits, 10, 31)
	if err != nil || digits[0] == '0' {
		return 0
	}
	return int(n)
}

// lettered is what may precede the number in a version id.
const lettered = "v"

// peekLettered looks for the version whose id is v and the number that was asked for. It is taken
// only when it is known that no id is the number alone.
func (s *Server) peekLettered(c *conn) (a upstream.Answer, ok bool) {
	ref := c.query.ref
	from := len(c.scratch)
	c.scratch = append(append(c.scratch, lettered...), ref.VersionID...)
	ref.VersionID = upstream.VersionID(view(c.scratch[from:]))
	if a, ok = s.secrets.Peek(ref); ok && s.preparedOf(&a).alone.Load() {
		c.query.ref = ref
		return a, true
	}
	return upstream.Answer{}, false
}

// lookupLettered asks for the version whose id is v and the number that was asked for, after the
// number alone ended in err. In an outage that says nothing of the number: only what was known
// before to have it to itself is taken then.
func (s *Server) lookupLettered(c *conn, ask func(context.Context, upstream.SecretRef) (upstream.Answer, error), err error) (upstream.Answer, error) {
	q := &c.query
	ref := q.ref
	ref.VersionID = lettered + ref.VersionID
	a, letteredErr := s.lookup(c, ask, ref)
	if errors.Is(err, upstream.ErrNotFound) {
		q.ref, err = ref, letteredErr
		if err == nil {
			s.preparedOf(&a).alone.Store(true)
		}
		return a, err
	}
	if letteredErr == nil && s.preparedOf(&a).alone.Load() {
		q.ref = ref
		return a, nil
	}
	return upstream.Answer{}, err
}

// nothingThere is Vault's answer where there is no secret. Its clients know it by having no other
// member.
var nothingThere = []byte("{\"errors\":[]}\n")

// failureVault is an error as Vault has it: texts, of which the first is one that its clients know.
func failureVault(_ *conn, f *failure) (status int, b body) {
	status = f.status
	texts := []string{}
	switch status {
	case http.StatusForbidden:
		texts = append(texts, "permission denied")
	case http.StatusMethodNotAllowed:
		texts = append(texts, "unsupported operation")
	case http.StatusNotFound: // a text would only be in the way of who looks for none
		return status, body{contentTypeJSON, nothingThere}
	case http.StatusConflict: // it is being deleted
		status = http.StatusNotFound
	case http.StatusGatewayTimeout: // not all of its clients ask again then
		status = http.StatusServiceUnavailable
	}
	return status, body{contentTypeJSON, encode(struct {
		Errors []string `json:"errors"`
	}{append(texts, f.message)})}
}

// getOrList answers with the value that is asked for, or with the names below it.
func (s *Server) getOrList(ctx *fasthttp.RequestCtx, c *conn) {
	if c.query.list {
		s.listNames(ctx, c)
		return
	}
	s.get(ctx, c)
}

// listNames answers with the names below a path: of the declared secrets those that the caller may
// read, if it may see a list at all. What lies deeper is one name that ends with a slash.
func (s *Server) listNames(ctx *fasthttp.RequestCtx, c *conn) {
	c.op = "ListSecrets"
	folder := strings.TrimSuffix(c.query.id, "/") + "/"
	if folder == "/" {
		folder = ""
	}
	var keys []string
	if c.caller.List {
		for _, name := range s.opts.Declared() {
			if below, ok := strings.CutPrefix(string(name), folder); ok && below != "" && name.Account() == "" && c.caller.may(name) {
				if i := strings.IndexByte(below, '/'); i >= 0 {
					below = below[:i+1]
				}
				keys = append(keys, below)
			}
		}
	}
	if keys == nil {
		s.refuse(ctx, c, pathNotFound)
		return
	}
	slices.Sort(keys)
	setJSON(ctx, encode(vaultAnswer{Data: map[string][]string{"keys": slices.Compact(keys)}, MountType: "kv"}))
	c.status = http.StatusOK
	s.audit(c, upstream.SecretRef{}, "", "listed")
}

func (s *Server) nowhere(ctx *fasthttp.RequestCtx, c *conn) { s.refuse(ctx, c, pathNotFound) }

// vaultMetadata answers with the versions of a secret that have a number, where the backend is one
// that tells them.
func (s *Server) vaultMetadata(ctx *fasthttp.RequestCtx, c *conn) {
	if c.query.list {
		s.listNames(ctx, c)
		return
	}
	ref := owned(upstream.SecretRef{SecretName: c.query.ref.SecretName})
	if !c.caller.may(ref.SecretName) {
		s.deny(ctx, c, ref)
		return
	}
	if s.opts.Versions == nil {
		s.refuse(ctx, c, versionsUnknown)
		return
	}
	list, err := s.listVersions(c, ref.SecretName)
	if err != nil {
		s.fail(ctx, c, ref, err)
		return
	}
	versions := map[int]any{}
	var current, oldest int
	var created, updated time.Time
	for _, v := range list.Versions {
		if created.IsZero() || v.CreateTime.Before(created) {
			created = v.CreateTime
		}
		if v.CreateTime.After(updated) {
			updated = v.CreateTime
		}
		n := vaultVersion(v.VersionID)
		if slices.Contains(v.VersionStages, upstream.ACSCurrent) {
			current = n
		}
		if n == 0 {
			continue
		}
		if oldest == 0 || n < oldest {
			oldest = n
		}
		versions[n] = map[string]any{"created_time": upstream.WireTime(v.CreateTime), "deletion_time": "", "destroyed": false}
	}
	setJSON(ctx, encode(vaultAnswer{MountType: "kv", Data: map[string]any{
		"cas_required": false, "created_time": upstream.WireTime(created), "updated_time": upstream.WireTime(updated),
		"current_version": current, "oldest_version": oldest, "max_versions": 0, "delete_version_after": "0s",
		"custom_metadata": nil, "versions": versions,
	}}))
}

// vaultMount answers what mount a path is in. The clients that ask do so before they read, to know
// of which version it is.
func (s *Server) vaultMount(ctx *fasthttp.RequestCtx, c *conn) {
	path, _, _ := bytes.Cut(ctx.Request.Header.RequestURI(), []byte{'?'})
	if mounts := s.mounts.Load(); mounts != nil {
		if mount, _ := mounts.of(path[len(mountsPath):]); mount != nil {
			setJSON(ctx, mount.about)
			return
		}
	}
	s.refuse(ctx, c, mountUnknown)
}

// vaultSelf answers what a client's token is.
func (s *Server) vaultSelf(ctx *fasthttp.RequestCtx, c *conn) { setJSON(ctx, c.caller.self) }

// vaultPolicies is what clients are told that their token may do; some cannot do without.
var vaultPolicies = []string{"default"}

// vaultSelf describes a token that never ends, so that no client begins to renew it, and that has
// no name but its caller's.
func vaultSelf(caller string) []byte {
	return encode(vaultAnswer{Data: map[string]any{
		"accessor": "", "creation_time": 0, "creation_ttl": 0, "display_name": caller, "entity_id": "", "expire_time": nil, "explicit_max_ttl": 0,
		"id": "", "meta": nil, "num_uses": 0, "orphan": true, "path": "", "policies": vaultPolicies, "renewable": false, "ttl": 0, "type": "service",
	}})
}

// vaultRenew tells the client that its token goes on as it is: there is nothing to renew. Some
// clients take over the token of the answer, so it must be theirs.
func (s *Server) vaultRenew(ctx *fasthttp.RequestCtx, _ *conn) {
	var token string
	for _, header := range s.tokenHeaders { // those that are there are equal
		token = cmp.Or(token, string(ctx.Request.Header.PeekBytes(header)))
	}
	setJSON(ctx, upstream.Erasable(encode(vaultAnswer{Auth: &vaultAuth{
		ClientToken: token, Policies: vaultPolicies, TokenPolicies: vaultPolicies, TokenType: "service", Orphan: true,
	}})))
}

func (s *Server) vaultRevoke(ctx *fasthttp.RequestCtx, c *conn) { s.refuse(ctx, c, tokenNotRevoked) }
