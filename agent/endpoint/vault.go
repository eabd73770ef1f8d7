package endpoint

import (
	"bytes"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"

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

// vaultMount holds, with a slash behind each, the paths of a mount.
type vaultMount struct {
	VaultMount
	root           []byte // behind vaultPrefix
	data, metadata []byte // behind root
}

// newVaultMounts returns nil for none.
func newVaultMounts(mounts []VaultMount) *vaultMounts {
	if len(mounts) == 0 {
		return nil
	}
	set := &vaultMounts{}
	for _, m := range mounts {
		set.list = append(set.list, vaultMount{VaultMount: m, root: []byte(m.Path + "/"), data: []byte("data/"), metadata: []byte("metadata/")})
	}
	return set
}

// vaultPrefix precedes all paths of Vault, whatever the prefix of names elsewhere.
var vaultPrefix = []byte("/v1/")

var (
	routeKV2 = &route{op: "GetSecretValue", params: paramsOfValue, named: true, handle: (*Server).get}
)

// routeOf returns the route of a path that is Vault's, nil for one that is not, and the name
// behind the mount.
func (m *vaultMounts) routeOf(path []byte) (r *route, name []byte) {
	if m == nil {
		return nil, nil
	}
	path, ok := bytes.CutPrefix(path, vaultPrefix)
	if !ok {
		return nil, nil
	}
	for i := range m.list {
		mount := &m.list[i]
		below, ok := bytes.CutPrefix(path, mount.root)
		if !ok {
			continue
		}
		if name, ok := bytes.CutPrefix(below, mount.data); ok {
			return routeKV2, name
		}
		return nil, nil
	}
	return nil, nil
}

var wrappingRefused = &refusal{"WrappingNotSupported", http.StatusBadRequest, "Answers are not wrapped here: leave out X-Vault-Wrap-TTL.", false}

// refuseWrapping refuses to hand out what the client wants to have wrapped.
func refuseWrapping(h headers) *refusal {
	if h.wrap {
		return wrappingRefused
	}
	return allowed
}
