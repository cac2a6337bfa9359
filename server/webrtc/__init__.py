"""WebRTC for live sessions: each client has a process of its own, a *peer*.

A peer is the client's end of a session (`server.api.live.Channel`) in another form: microphone and
data channel in, tracks out. aiortc and FFmpeg are loaded in peers only, so what strangers send is
decoded where a crash ends one session, and the API's event loop packs no packets.
"""
