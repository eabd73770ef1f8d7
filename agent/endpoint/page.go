package endpoint

import (
	"bytes"
	"embed"
	"io/fs"
	"path"
	"strings"

	"github.com/valyala/fasthttp"
)

// pageFiles is all that the status page consists of.
//
//go:embed page
var pageFiles embed.FS

// pagePolicy lets the page load what stands beside it and nothing else, run no inline script,
// turn no text into markup, and be shown in no other page.
const pagePolicy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
	"form-action 'self'; frame-ancestors 'none'; base-uri 'none'; require-trusted-types-for 'script'; trusted-types 'none'"

// pageTypes are the content types of the files below /status, by the ends of their names. The
// others are shown by routes of their own.
var pageTypes = map[string]string{
	".css": "text/css; charset=utf-8",
	".js":  "text/javascript; charset=utf-8",
	".svg": "image/svg+xml",
}

// pageFile returns the name of the file at a path below /status.
func pageFile(requested []byte) (name string, ok bool) {
	name, ok = strings.CutPrefix(string(requested), "/status/")
	if !ok || pageTypes[path.Ext(name)] == "" {
		return "", false
	}
	_, err := fs.Stat(pageFiles, "page/"+name)
	return name, err == nil
}

// wantsPage reports whether the status is asked for by a browser that wants to show it.
func (s *Server) wantsPage(req *fasthttp.RequestHeader) bool {
	return s.opts.StatusPage && bytes.Contains(req.Peek("Accept"), []byte("text/html"))
}

// file answers with a file of the page.
func (s *Server) file(ctx *fasthttp.RequestCtx, _ *conn) {
	requested, _, _ := bytes.Cut(ctx.Request.Header.RequestURI(), []byte{'?'})
	name, _ := pageFile(requested)
	s.showFile(ctx, name)
}

// home sends a browser to the page. For all others there is nothing.
func (s *Server) home(ctx *fasthttp.RequestCtx, c *conn) {
	switch {
	case s.wantsPage(&ctx.Request.Header):
	case c.caller == nil:
		s.refuse(ctx, c, tokenMissing)
		return
	default:
		s.refuse(ctx, c, pathNotFound)
		return
	}
	ctx.Response.Header.Set("Location", "/status")
	ctx.Response.SetStatusCode(fasthttp.StatusSeeOther)
	c.status = fasthttp.StatusSeeOther
}

// setPageHeaders keeps what a browser gets to itself.
func setPageHeaders(ctx *fasthttp.RequestCtx) {
	h := &ctx.Response.Header
	h.Set("Content-Security-Policy", pagePolicy)
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("X-Frame-Options", "DENY")
	h.SetCanonical(headerNoSniff, noSniff)
	h.Set("Vary", "Accept, Cookie")
}

// showFile answers with a file of the page.
func (s *Server) showFile(ctx *fasthttp.RequestCtx, name string) {
	b, err := pageFiles.ReadFile("page/" + name)
	if err != nil { // a name of this package that is not in the folder
		panic(err)
	}
	contentType := pageTypes[path.Ext(name)]
	if contentType == "" {
		contentType = "text/html; charset=utf-8"
	}
	setBody(ctx, []byte(contentType), b)
}
