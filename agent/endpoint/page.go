package endpoint

import (
	"bytes"
	"embed"
	"strings"

	"github.com/valyala/fasthttp"

	"secretagent/upstream"
)

// pageFiles is all that the status page consists of.
//
//go:embed page
var pageFiles embed.FS

// pagePolicy lets the page load what stands beside it and nothing else, run no inline script,
// turn no text into markup, and be shown in no other page.
const pagePolicy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
	"form-action 'self'; frame-ancestors 'none'; base-uri 'none'; require-trusted-types-for 'script'; trusted-types 'none'"

const (
	contentTypeHTML   = "text/html; charset=utf-8"
	contentTypeScript = "text/javascript; charset=utf-8"
)

// pageRoutes are the paths of the status page below /status, and the files at them.
var pageRoutes = map[string]struct {
	route       route
	file        string
	contentType string
}{
	"page.css":    {routePageFile, "page/page.css", "text/css; charset=utf-8"},
	"page.js":     {routePageFile, "page/page.js", contentTypeScript},
	"view.js":     {routePageFile, "page/view.js", contentTypeScript},
	"history.js":  {routePageFile, "page/history.js", contentTypeScript},
	"versions.js": {routePageFile, "page/versions.js", contentTypeScript},
	"time.js":     {routePageFile, "page/time.js", contentTypeScript},
	"dom.js":      {routePageFile, "page/dom.js", contentTypeScript},
	"icon.svg":    {routePageFile, "page/icon.svg", "image/svg+xml"},
	"open":        {route: routePageOpen},
	"link":        {route: routePageLink},
	"sign-in":     {route: routeSignIn},
	"sign-out":    {route: routeSignOut},
	"versions":    {route: routeVersions},
}

// pageRoute returns the route of a path that begins with /status/.
func pageRoute(path []byte) route {
	if name, ok := bytes.CutPrefix(path, []byte("/status/")); ok {
		return pageRoutes[string(name)].route
	}
	return routeUnknown
}

// forBrowsers reports whether a browser asks at r without a token.
func (r route) forBrowsers() bool {
	return r == routePageFile || r == routePageOpen || r == routeSignIn || r == routeSignOut
}

// posts reports whether r takes POST, and nothing else.
func (r route) posts() bool {
	return r == routeReport || r == routePageLink || r == routeSignIn || r == routeSignOut
}

// fromPage reports whether r may be asked only by the page itself.
func (r route) fromPage() bool { return r == routeSignIn || r == routeSignOut }

// wantsPage reports whether the status is asked for by a browser that wants to show it.
func (s *Server) wantsPage(req *fasthttp.RequestHeader) bool {
	return s.opts.StatusPage && bytes.Contains(req.Peek("Accept"), []byte("text/html"))
}

// page answers what browsers ask for.
func (s *Server) page(ctx *fasthttp.RequestCtx, c *conn, r route, raw []byte) {
	if !s.opts.StatusPage {
		s.refuse(ctx, c, pathNotFound)
		return
	}
	s.setPageHeaders(ctx, c)
	p := params{c: c, route: r, rest: raw}
	_, code, err := p.next()
	if err == nil {
		_, _, err = p.next() // there is at most one
	}
	if err != nil {
		s.fail(ctx, c, upstream.SecretRef{}, err)
		return
	}
	switch r {
	case routeStatus:
		if c.caller == nil {
			s.showSignIn(ctx, "")
		} else {
			s.showFile(ctx, "page/index.html", contentTypeHTML)
		}
	case routePageFile:
		path, _, _ := bytes.Cut(ctx.Request.Header.RequestURI(), []byte{'?'})
		f := pageRoutes[strings.TrimPrefix(string(path), "/status/")]
		s.showFile(ctx, f.file, f.contentType)
	case routePageLink:
		s.makeLink(ctx, c)
	case routePageOpen:
		s.openLink(ctx, c, code)
	case routeSignIn:
		s.signIn(ctx, c)
	case routeSignOut:
		s.signOut(ctx, c)
	}
}

// setPageHeaders keeps what a browser gets to itself.
func (s *Server) setPageHeaders(ctx *fasthttp.RequestCtx, c *conn) {
	s.setCommonHeaders(ctx, c)
	h := &ctx.Response.Header
	h.Set("Content-Security-Policy", pagePolicy)
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Vary", "Accept, Cookie")
}

func (s *Server) showFile(ctx *fasthttp.RequestCtx, name, contentType string) {
	b, err := pageFiles.ReadFile(name)
	if err != nil { // a name of this file that is not in the folder
		panic(err)
	}
	ctx.Response.Header.SetContentType(contentType)
	ctx.Response.SetBodyRaw(b)
}
