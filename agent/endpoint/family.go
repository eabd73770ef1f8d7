package endpoint

import "bytes"

// family is a kind of application: those written for Alibaba's KMS Agent, for the AWS agent, or
// for Vault. Each was written for an agent of its own and keeps asking as it did there. Headers
// and the raw path tell which one asks, before anything is refused, see [Server.familyOf].
//
// A family is how requests are read. How answers and errors look is a matter of the format, see
// [shapes], which a request may choose for itself.
type family struct {
	name string

	// format is the shape of answers and errors of requests that name none; 0: the caller's own,
	// or else the endpoint's.
	format Format

	// routes are paths that mean something else, or only something, in this family.
	routes map[string]*route

	// lenient families leave out a parameter by giving it no value, and give it again to
	// replace it.
	lenient bool

	// refuse returns why a request that passed the guard is refused for one of its headers; nil:
	// none is.
	refuse func(headers) *refusal
}

var (
	familyKMS   = &family{name: "kms"}
	familyAWS   = &family{name: "aws", format: FormatAWS, routes: routesAWS, lenient: true}
	familyVault = &family{name: "vault", format: FormatVault, refuse: refuseWrapping}
)

// familyOf returns the family of a request, and the route and name that its path stands for
// there. The rule has three steps, the first that fits decides:
//
//  1. X-Aws-Parameters-Secrets-Token is there: the AWS agent's, whatever the path;
//  2. the path is one of Vault's, see [vaultMounts.routeOf]: Vault's;
//  3. anything else is the KMS Agent's.
//
// The path is matched as it came over the wire: an encoded slash is part of a name, never a
// border of a mount. fasthttp's own idea of the path is not used: it resolves dots and doubled
// slashes, which are ordinary characters of a secret name.
func (s *Server) familyOf(h *headers, path []byte) (f *family, r *route, name []byte) {
	if h.aws {
		r, name = s.routeOf(familyAWS, path)
		return familyAWS, r, name
	}
	r, name, below := s.mounts.Load().routeOf(path)
	if r != nil {
		return familyVault, r, name
	}
	r, name = s.routeOf(familyKMS, path)
	switch {
	case below && r == routeName:
		r = routeBelow
	case below && r == routeUnknown:
		return familyVault, routeNowhere, nil
	}
	return familyKMS, r, name
}

// formatOf returns the format of a request that names none.
func (s *Server) formatOf(f *family, r *route, who *caller) Format {
	switch {
	case r.format != 0:
		return r.format
	case f.format != 0:
		return f.format
	case who != nil && who.Format != 0:
		return who.Format
	}
	return s.opts.Format
}

// routeOf returns the route of a path, and the name behind the prefix.
func (s *Server) routeOf(f *family, path []byte) (r *route, name []byte) {
	if r, ok := f.routes[string(path)]; ok {
		return r, nil
	}
	if name, ok := bytes.CutPrefix(path, s.prefix); ok {
		return routeName, name
	}
	if r, ok := routes[string(path)]; ok {
		return r, nil
	}
	if _, ok := pageFile(path); ok {
		return routeFile, nil
	}
	return routeUnknown, nil
}
