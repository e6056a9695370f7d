// A box is drawn with mouse, pen or finger; what is sent are its sides as shares of the picture, 0 to 1.
let start = null
const share = (value, low, size) => Math.min(1, Math.max(0, (value - low) / size))
const place = event => {
  const frame = element.querySelector(".frame").getBoundingClientRect()
  return [share(event.clientX, frame.left, frame.width), share(event.clientY, frame.top, frame.height)]
}
const sides = (a, b) => [Math.min(a[0], b[0]), Math.min(a[1], b[1]), Math.max(a[0], b[0]), Math.max(a[1], b[1])]
const draw = ([left, top, right, bottom]) => {
  const box = element.querySelector(".box")
  box.hidden = false
  Object.assign(box.style, {left: 100 * left + "%", top: 100 * top + "%", width: 100 * (right - left) + "%", height: 100 * (bottom - top) + "%"})
}
element.addEventListener("pointerdown", event => {
  if (!event.target.closest(".frame") || event.button) return
  event.preventDefault()
  element.setPointerCapture(event.pointerId)
  start = place(event)
})
element.addEventListener("pointermove", event => { if (start) draw(sides(start, place(event))) })
element.addEventListener("pointercancel", () => { start = null })
element.addEventListener("pointerup", event => {
  if (!start) return
  const box = sides(start, place(event))
  start = null
  draw(box)
  trigger("select", {box})
})
