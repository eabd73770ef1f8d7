package endpoint

import (
	"bytes"
	"crypto/tls"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/valyala/fasthttp"

	"secretagent/upstream"
)

// admitBrowser decides about a request without a token. What only shows or begins the sign-in
// is for everyone; the status needs a session, and a session counts for nothing but the status.
func (s *Server) admitBrowser(req *fasthttp.RequestHeader, c *conn, r *route, set *callerSet) (*caller, *refusal) {
	switch {
	case !s.opts.StatusPage:
		return nil, tokenMissing
	case r.forBrowsers:
		return nil, allowed
	case !r.forSessions:
		return nil, tokenMissing
	}
	cookie := req.CookieBytes(cookieName(req.Host()))
	if len(cookie) > 0 {
		if who := s.sessions.holder(cookie, set, time.Now()); who != nil {
			return who, allowed
		}
	}
	switch {
	case r == routes["/status"] && s.wantsPage(req):
		return nil, allowed // it gets the sign-in
	case len(cookie) > 0:
		return nil, sessionEnded
	}
	return nil, tokenMissing
}

// cookieName returns the name of the session's cookie. Cookies do not know ports: with the
// port in their names, agents on one host do not end each other's sessions.
func cookieName(host []byte) []byte {
	name := []byte("secretagent")
	if i := bytes.LastIndexByte(host, ':'); i >= 0 && !bytes.HasSuffix(host, []byte("]")) {
		name = append(append(name, '-'), host[i+1:]...)
	}
	return name
}

// sameOrigin reports whether a browser says that the page of this very address sends req.
// Nobody can make a browser say so for another one.
func sameOrigin(req *fasthttp.RequestHeader, c *conn) bool {
	said, opaque := false, false
	for k, v := range req.All() {
		switch string(k) {
		case "Sec-Fetch-Site":
			if string(v) != "same-origin" {
				return false
			}
			said = true
		case "Origin":
			// Where a page has no referrer, browsers leave its origin out as well.
			if opaque = string(v) == "null"; !opaque && string(v) != c.scheme()+"://"+string(req.Host()) {
				return false
			}
			said = said || !opaque
		}
	}
	return said
}

// scheme returns how c's client spells the protocol.
func (c *conn) scheme() string {
	if _, ok := c.Conn.(*tls.Conn); ok {
		return "https"
	}
	return "http"
}

// showSignIn shows the form, with a notice of this file. It leaves the status as it is.
func (s *Server) showSignIn(ctx *fasthttp.RequestCtx, notice string) {
	s.showFile(ctx, "sign-in.html")
	if notice != "" {
		notice = `<p class="notice bad" role="alert"><span aria-hidden="true">✕</span> ` + notice + "</p>"
	}
	ctx.Response.SetBodyRaw(bytes.Replace(ctx.Response.Body(), []byte("<!-- notice -->"), []byte(notice), 1))
}

// makeLink answers a caller with a link that lets one browser see the caller's status.
func (s *Server) makeLink(ctx *fasthttp.RequestCtx, c *conn) {
	now := time.Now()
	g := grantOf(c, now)
	g.link = true
	setJSON(ctx, encode(struct {
		Link      string
		ExpiresAt time.Time
	}{s.address(ctx, c) + "/status/open?code=" + s.sessions.add(g), now.Add(linkLife).UTC()}))
	c.status = fasthttp.StatusOK
	s.audit(c, upstream.SecretRef{}, "", "link-made")
}

// address returns where a browser reaches this server: as the client itself did or, when that
// came over a unix socket, over the first TCP listener. It is empty without one.
func (s *Server) address(ctx *fasthttp.RequestCtx, c *conn) string {
	if !c.unix {
		return c.scheme() + "://" + string(ctx.Request.Header.Host())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []string
	for ln := range s.listeners {
		addr, ok := ln.Addr().(*net.TCPAddr)
		if !ok {
			continue
		}
		host, scheme := addr.IP.String(), "http://"
		if addr.IP.IsUnspecified() {
			host = "localhost"
		}
		if own, ok := ln.(interface{ Secure() bool }); ok && own.Secure() {
			scheme = "https://"
		}
		all = append(all, scheme+net.JoinHostPort(host, strconv.Itoa(addr.Port)))
	}
	slices.Sort(all)
	return append(all, "")[0]
}

// openLink begins a session for the first visitor that follows a link.
func (s *Server) openLink(ctx *fasthttp.RequestCtx, c *conn) {
	now := time.Now()
	g := s.sessions.redeem([]byte(c.query.code), now)
	if g != nil {
		c.caller = g.holder(s.callers.Load(), now)
	}
	if c.caller == nil {
		s.refuse(ctx, c, linkInvalid)
		s.showSignIn(ctx, "The link has been used already, or is more than a minute old. Ask for another one.")
		return
	}
	s.beginSession(ctx, c, *g, now)
}

// signIn begins a session for a visitor who types a valid token into the form. A wrong one costs
// what it costs everywhere: the connection.
func (s *Server) signIn(ctx *fasthttp.RequestCtx, c *conn) {
	h := headers{tokens: 1, token: formToken(c, ctx.PostBody())}
	who, refused := authenticate(c, &h, s.callers.Load())
	if refused != allowed {
		s.refuse(ctx, c, refused)
		notice := "This is not a valid token."
		if refused == peerNotAllowed {
			notice = "This token counts on the unix socket only. Use a one-time link."
		}
		s.showSignIn(ctx, notice)
		return
	}
	c.caller = who
	now := time.Now()
	s.beginSession(ctx, c, grantOf(c, now), now)
}

// formToken returns the token that a form was filled with, without space around it.
func formToken(c *conn, body []byte) []byte {
	text, ok := bytes.CutPrefix(body, []byte("token="))
	token, valid := c.unescape(text, true)
	if !ok || !valid {
		return nil
	}
	return []byte(strings.TrimSpace(token))
}

func (s *Server) beginSession(ctx *fasthttp.RequestCtx, c *conn, g grant, now time.Time) {
	g.link, g.began, g.used = false, now, now
	s.claim(c, c.account)
	s.setCookie(ctx, c, s.sessions.add(g))
	s.audit(c, upstream.SecretRef{}, "", "signed-in")
}

func (s *Server) signOut(ctx *fasthttp.RequestCtx, c *conn) {
	h := &ctx.Request.Header
	cookie := h.CookieBytes(cookieName(h.Host()))
	c.caller = s.sessions.holder(cookie, s.callers.Load(), time.Now())
	s.sessions.end(cookie)
	s.setCookie(ctx, c, "")
	if c.caller != nil {
		s.audit(c, upstream.SecretRef{}, "", "signed-out")
	}
}

// setCookie sends the browser to the page with the cookie of a session; without one when value
// is empty.
func (s *Server) setCookie(ctx *fasthttp.RequestCtx, c *conn, value string) {
	var cookie fasthttp.Cookie
	cookie.SetKeyBytes(cookieName(ctx.Request.Header.Host()))
	cookie.SetValue(value)
	cookie.SetPath("/status")
	cookie.SetHTTPOnly(true)
	cookie.SetSameSite(fasthttp.CookieSameSiteStrictMode)
	cookie.SetSecure(c.scheme() == "https")
	if value == "" {
		cookie.SetExpire(fasthttp.CookieExpireDelete)
	}
	ctx.Response.Header.SetCookie(&cookie)
	ctx.Response.Header.Set("Location", "/status")
	ctx.Response.SetStatusCode(fasthttp.StatusSeeOther)
	c.status = fasthttp.StatusSeeOther
}
